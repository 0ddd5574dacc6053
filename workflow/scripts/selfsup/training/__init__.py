"""Training: the loop, checkpoints, ranks and devices, the clock."""
