"""Where the error of a program comes from: a float64 shadow, what each rounding did, and the report."""
