"""What became of updates, counted; and, without training, what would land and what averages and margins lose.

Its files:

    reducing    many sums over the entries of an array, in one pass
    counting    the fates of updates by their bits: landed, swamped, stagnated; it knows no format
    fates       what a tally holds, and the rates that follow
    rows        the same of rows of one length, four counts in a word
    packing     the tallies of a whole model as three arrays
    ages        when each entry last moved
    landing     the half-gap law: what would land, without training
    rationals   the values of a format as exact rationals
    averages    what a format lets running averages and counters do, in exact arithmetic, on the host
    margins     the margins from which a computed cross-entropy, and its gradient, are exactly zero
"""
