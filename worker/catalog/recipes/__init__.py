"""Recipes: images made in several steps. `recipe.py` has the noun, `file.py` reads it, `schema.py` describes it."""
