"""Training: one loop, and a file per stage."""
