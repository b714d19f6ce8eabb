"""Single operations, exactly.

Error-free transformations (`exact_sums`); + - * / and the square root rounded once with them (`basic`); and what of them
stochastic rounding needs (`chances`).
"""
