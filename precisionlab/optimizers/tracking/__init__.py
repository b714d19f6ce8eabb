"""The record of what is lost.

Its files:

    storing     in which format each leaf is stored
    sights      what there is to see in one update: a `Sight` for each leaf of weights and state (`questions`)
    looking     all questions about it, answered: in blocks, or leaf by leaf (`alike`) where arrays may be sharded
    plans       leaves of any sizes cut into rows, and rows put into blocks
    blocks      rows fetched a block at a time, whatever is asked of them
    counting    all questions about a block, counted in one pass; the same program for all leaves of a kind
    floors      what even a compensation loses
    arriving    whether the weights went where the record says
    windows     what the last reads lost
    records     the record in the optimizer's state, and out of it
    reading     a record begun, and one more look read into it
    track       looks from within the step
    observing   looks from outside
"""
