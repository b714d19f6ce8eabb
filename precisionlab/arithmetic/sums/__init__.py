"""Sums of many terms in a stated order, each partial sum rounded.

Its files:

    orders                            the order, and what is rounded on the way
    accumulation                      how sums of products are accumulated: dot, and the program behind it
    reductions                        sums and products along axes, and running ones
    products, convolutions, scatters  the operations that are made of them
"""
