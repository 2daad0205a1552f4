"""WebDataset tars: walking, scanning and writing them, from an image folder or from anyone's shards."""

__all__ = ["assemble", "compacting", "image_folder", "journal", "scan", "shard_scan", "tar", "writer"]
