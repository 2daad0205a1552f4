"""Where samples are: the index of a set of shards, its file, remote shards, and bytes read by (shard, row)."""

__all__ = ["compact", "disk", "index_checks", "index_file", "reader", "remote", "shard_index", "sources", "transfer"]
