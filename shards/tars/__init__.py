"""WebDataset tars: walking, scanning and writing them, from an image folder or from anyone's shards."""
