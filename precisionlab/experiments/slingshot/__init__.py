"""Does it help an overfitted network to shrink all its weights and train a little more?

Its files:

    question     run and verdict
    settings     the configuration
    tasks        problems small enough to overfit
    arms         what is done to the weights, and in which registers
    training     networks trained side by side
    measuring    one run of it
    looks        when one looks, and what one reads there
    power        how much of a function varies how fast
    spectra      the learned function at four times
    ratios       ratios by seed
    seeds        what seeds say: a sign test and an interval of the median
    verdicts     the rule of the verdict
    sizes        the question of small data
    planted      worlds in which the rule's answer is known
    telling      the answers in words and rows
    pictures     what came out, drawn
"""
