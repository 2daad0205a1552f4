"""How a student is trained: recipes, the zoo of models, overrides, settings. Imports no torch."""
