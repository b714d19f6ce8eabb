"""Does it help an overfitted network to shrink all its weights and train a little more?

Its files:

    question     configuration, run and verdict
    tasks        two problems small enough to overfit
    arms         what is done to the weights
    measuring    one run of it
    power        how much of a learned function varies how fast
    verdicts     the rule of the verdict
    pictures     what came out, drawn
"""
