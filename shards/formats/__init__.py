"""Input formats of make-shards, one a file, and their table; all of them become lists of images with labels."""
