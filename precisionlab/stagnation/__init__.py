"""What became of updates, counted; and, without training, what would land and what averages and margins lose."""
