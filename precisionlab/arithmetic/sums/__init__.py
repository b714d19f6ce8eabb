"""Sums of many terms in a stated order, each partial sum rounded.

Its files:

    orders                            the order, and what is rounded on the way
    accumulation                      sums and products along axes, dot
    products, convolutions, scatters  the operations that are made of them
"""
