"""Recipes of students, the zoo of models, overrides, settings. Imports no torch."""
