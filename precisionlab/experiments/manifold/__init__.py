"""Does the flat manifold of minima come from geometry, or from what the number format can represent?

    question      configuration, run and verdict; the measurements below, one after the other
    census        row 1, points of a lattice that fit
    extents       row 2, how far from a minimum nothing moves
    stagnation    rows 3 and 5, what lies beneath a stagnated net
    repair        rows 4 and 9, stagnation taken away, the format kept; and each alone
    ring          row 6, the positive control
    dimension     rows 7 and 8, flat directions and the floor of the loss
    margins       row 10, the contrast: cross-entropy
    theorem       the theorem's own numbers, and nets that must fail it
    sizes         realistic sizes: what formats see, answer and reduce of nets on many digits (counts, answers, wide)
    transformer   what holds a transformer trained in bfloat16: curvature (adam_metric), decay, or the format
    decision      what the rows say together, by rules fixed before
    settings, arms    nets and formats by name; training to stagnation, and on in float64
    pictures/     every measurement drawn from its arrays

A measurement has two functions: `measure` gives arrays, `judge` reads them against both hypotheses.
"""
