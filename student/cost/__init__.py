"""What a cache and its students will cost, and the rates from which that follows."""

__all__ = ["cost_estimate", "disk_need", "rates"]
