"""Stage 1: opening or making a cache, then rendering, asking, encoding and committing unit by unit."""

__all__ = ["build", "calibration", "encoding", "opening", "rendering", "stage1_events", "walk"]
