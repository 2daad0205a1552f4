"""What a sample looks like under (recipe, view number): drawn as parameters, rendered as pixels, mixed in blocks."""
