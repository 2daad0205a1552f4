"""How a student is trained: recipes, the zoo of models, overrides, settings. Imports no torch."""

__all__ = ["field_words", "overrides", "settings", "student_recipe", "suited", "zoo"]
