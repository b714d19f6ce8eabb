"""Do roundings sling weights out of overfitting: tasks, arms, one run, and what follows from it."""
