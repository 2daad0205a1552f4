"""Units in Zarr: what a cache is for (spec), how it lies on disk, and commits that are all or nothing."""
