"""A λ × τ map: the grid, its directory, and the training of its cells."""
