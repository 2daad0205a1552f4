"""Worker processes: one pool for rendering in both stages, for writing and for scanning shards."""

__all__ = ["parcels", "worker_process", "workers"]
