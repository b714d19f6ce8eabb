"""The optimizer's own program, run again, to learn what it meant before anything was stored narrow.

Its files:

    meant       an update of its state, with every narrowing left out
    remaking    an update made again from the state it left, for the looks of one step in many
    probing     what the program does to single numbers: sums, maxima, roundings of its own
"""
