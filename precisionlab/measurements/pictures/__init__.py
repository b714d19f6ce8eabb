"""What was measured, as pictures. Each function draws on what it is given and returns it, and does nothing else.

`manifold` and `slingshot` hold the figures of these experiments, by caption.
"""
