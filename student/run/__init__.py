"""A run and its directory: the loop, the students of a pass, checkpoints, metrics, export."""
