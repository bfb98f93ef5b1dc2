"""What the loss divides by, and the metrics that are read from it."""
