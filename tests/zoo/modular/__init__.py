"""A tiny random repository for every modular pipeline class of diffusers that makes images or videos."""

from collections.abc import Mapping

from tests.zoo.modular import images, own, videos
from tests.zoo.recipe import Recipe

MODULAR: tuple[Recipe, ...] = (*images.RECIPES, *videos.RECIPES, *own.RECIPES)

# Classes without a recipe, and why.
EXCLUDED: Mapping[str, str] = {"MiniMaxMusic3ModularPipeline": "makes sound alone"}
