"""Find samples and read them: the index of a set of shards, its file, remote shards, and bytes read by (shard, row)."""
