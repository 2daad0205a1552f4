"""A run and its directory: the loop, the students of a pass, checkpoints, metrics, export."""

__all__ = ["checkpoint", "export", "loop", "pace", "results", "run_events", "run_log", "run_reader", "students"]
