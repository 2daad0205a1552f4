"""A λ × τ map: the grid, its directory, the training of its cells, and whether the students of a pass fit in memory."""
