"""Stage 1: opening or making a cache, then rendering, asking, encoding and committing unit by unit."""
