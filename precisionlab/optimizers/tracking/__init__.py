"""The record of what is lost.

Its files:

    storing     in which format each leaf is stored
    sights      what there is to see in one update: a `Sight` for each leaf of weights and state
    alike       leaves of one shape, together
    looking     all questions about a leaf, counted in one pass
    arriving    whether the weights went where the record says
    windows     what the last reads lost
    records     the record in the optimizer's state, and out of it
    track       who makes it
"""
