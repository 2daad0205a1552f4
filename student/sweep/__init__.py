"""A λ × τ map: the grid, its directory, and the training of its cells."""

__all__ = ["cell_training", "grid", "sweep_directory", "sweep_loop"]
