"""What a format is, and rounding to it.

Its files:

    carriers, wide               float32 and float64 as ladders of integers; what comes in as float64 where JAX would round it
    formats, checks              the numbers of a format; whether they make sense and fit their carrier
    grids                        where a number lies among the values of a format: significand, shift, base; `ulp`, `neighbors`
    words                        the numbers of a format as words of a carrier, derived once for all its roundings
    modes, randomness            the increment of each mode, the one to odd too; random words
    laws, rounding               add it, drop the rest, overflow; who asks for that: `round_to`, and operations by the hundred
    derivatives                  the rounded values with the derivative of what was rounded, transposed as well
    placing                      the sum of significand and increment, and what is kept of it
    scaling                      exact products with powers of two
    blocks, block_formats        formats whose entries share a scale (MX, NVFP4), and their tables
    block_rounding, cutting      scales and elements of blocks; an axis cut into blocks, and put together again
    scale_laws                   which power of two a block shares
"""
