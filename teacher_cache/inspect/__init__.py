"""Looking at a cache before, during and after it is made."""

__all__ = ["cache_plan", "near", "sheet", "status", "verify"]
