"""Views of a sample by recipe and view number: drawn as parameters, rendered as pixels, mixed in blocks."""
