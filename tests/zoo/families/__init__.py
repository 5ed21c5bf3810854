"""The recipes, one file for each kind of model; each has a tuple RECIPES."""
