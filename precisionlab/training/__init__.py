"""One training step and loops of them, with a rounding at every site that a `Policy` names.

Its files:

    loss_scaling    gradients moved into the range of a narrow format
    sites           roundings at the sites of a step
    steps           one step as a pure function
    loops           scans, chunks and sweeps of steps
    shrinking       all weights times a factor, each product rounded once
"""
