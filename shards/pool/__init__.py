"""Worker processes: one pool for rendering in both stages, for writing and for scanning shards."""
