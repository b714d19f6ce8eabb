"""What came out of a slingshot, drawn.

Its files:

    figures    what is drawn, by caption
    arms       the test loss after each arm, and on the way in and back down
    courses    ratios against more steps, and against the number of data
    spectra    the learned function at four times
    shared     what they share
"""
