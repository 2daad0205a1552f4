"""What make-shards takes: one format a file, and their table; all of them become lists of images with labels."""
