"""What a format is, and rounding to it."""
