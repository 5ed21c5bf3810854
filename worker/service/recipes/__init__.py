"""Recipes as they are served; README.md has the files in order."""
