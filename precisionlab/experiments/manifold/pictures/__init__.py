"""What was measured, as pictures: each function draws on what it is given and returns it, and does nothing else."""
