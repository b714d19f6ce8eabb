"""One training step and loops of them, with a rounding at every site."""
