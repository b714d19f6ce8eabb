"""What ends stagnation: five transformations of Optax that lose less, each with its floor."""
