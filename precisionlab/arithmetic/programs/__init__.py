"""A program of JAX, walked equation by equation.

Its files:

    equations                   what an equation says in the installed release: the one file that knows
    survey                      a function as a program; what of it is refused, and warned of
    walking                     one equation after the other
    loops, combining, applying  what holds programs of its own: scan, while, cond; functions on single entries
    references, derivatives     arrays changed in place; derivatives of the user's own
    sharing                     what is called repeatedly, walked once
    passing                     values through JAX's own transformations
"""
