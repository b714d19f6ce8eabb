"""The optimizer's own program, run again, to learn what it meant before anything was stored narrow.

Its files:

    meant       an update of its state, with every narrowing left out
    remaking    an update made again from the state it left, for the looks of one step in many
    recipes     how each entry of it follows from arrays at hand, for looks at a block at a time
    flattening  the program as one list of operations, nothing computed twice
    probing     what the program does to single numbers: sums, maxima, roundings of its own
"""
