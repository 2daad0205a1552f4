"""What a sample looks like under (recipe, view number): drawn as parameters, rendered as pixels, mixed in blocks."""

__all__ = [
    "augment",
    "behaviour",
    "blocks",
    "decode",
    "erasing",
    "mixing",
    "operation_names",
    "operations",
    "rand_augment",
    "reference",
    "resample",
    "sketch",
    "view",
    "view_recipe",
]
