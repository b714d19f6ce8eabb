"""What all questions share: what an experiment and a measurement are, claims, configurations, panels of pictures."""
