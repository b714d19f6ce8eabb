"""Does the flat manifold of minima come from geometry, or from what the number format can represent?

What decides:

    question      the run: the measurements one after the other
    configuration, judging    what a run is; what follows from its arrays
    worlds        square loss, square loss with decay, cross-entropy: what a net is trained to
    planted       worlds whose answer is known, as controls of the whole decision
    descent       many weights of many seeds, in float64 or in a format
    pushes        in how many directions is a resting place flat, asked inside the arithmetic
    directions    the deciding measurement: nets and planted worlds pushed in three arithmetics
    decision      the rule, fixed before
    verdicts      the answer in words
    characteristics    how often the decision says what, where the answer is known

What describes:

    decay         from how many bits on weight decay moves weights along the manifold
    walkers       stochastic rounding as a probe: directions in which walkers still spread
    drift         where a net goes after it has reached the minimum, with noise in its labels and with decay
    hyperbola     the same in two weights, where every step is known
    noisy, drift_law    descent with noisy labels; the law of a rounded noisy step
    sizes         directions seen against data, weights, bits and step size, in nets of thousands of weights
    wide, answers, counts    nets of thousands of weights, their pushes and training, and what is counted in them
    transformer   what holds the weights of a transformer in bfloat16: data, decay, or the format
    adam_metric   curvature as Adam sees it
    theorem       the theorem's own numbers in float64, and nets that must fail it
    census        row 1, points of a lattice that fit
    extents       row 2, how far from a minimum nothing moves
    stagnation    rows 3 and 5, what lies beneath a stagnated net
    repair        rows 4 and 9, what of the format costs how much of the loss
    ring          row 6, where a format makes a ring out of four points
    floor         row 8, the loss that a format leaves
    margins, vanishing    row 10, cross-entropy: where the computed loss is exactly zero
    rows          what these rows say, and their claims
    nets, settings, arms    nets and their data; formats by name; training to stagnation, and on in float64
    pictures/     every measurement drawn from its arrays

A measurement has two functions: `measure` gives arrays; `claims` or `judge` reads them against both hypotheses.
"""
