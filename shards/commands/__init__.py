"""The commands that make and check shards."""
