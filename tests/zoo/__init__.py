"""A tiny random repository for every pipeline class of diffusers that makes images or video of text or images."""

import importlib
import pkgutil

from tests.zoo import families
from tests.zoo.recipe import Recipe

_FILES = sorted(file.name for file in pkgutil.iter_modules(families.__path__))
RECIPES: tuple[Recipe, ...] = tuple(
    recipe for name in _FILES for recipe in importlib.import_module(f"{families.__name__}.{name}").RECIPES
)

_names = [recipe.pipeline for recipe in RECIPES]
if twice := {name for name in _names if _names.count(name) > 1}:
    raise ValueError(f"two recipes for {', '.join(sorted(twice))}")
