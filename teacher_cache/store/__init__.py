"""Units in Zarr: what a cache is for (spec), how it lies on disk, and commits that are all or nothing."""

__all__ = [
    "cache",
    "commit",
    "digest",
    "header",
    "layout",
    "ledger",
    "place",
    "schemes",
    "spec",
    "unit",
    "web",
    "zarr_arrays",
    "zarr_objects",
]
