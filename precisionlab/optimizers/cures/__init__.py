"""What ends stagnation: transformations of Optax, each with its floor derived in its docstring.

Its files:

    grid           `round_params`: weights on the grid of a format, by any mode
    compensated    `kahan`: what a rounding drops is kept in a second number
    components     `two_components`: weights as a sum of two numbers
    masters        `master_weights`: float32 beside rounded copies
    moments        `round_state`: the same for what the optimizer remembers
"""
