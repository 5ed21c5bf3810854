"""Modular recipes that have the parts of an ordinary pipeline's recipe."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.zoo import RECIPES
from tests.zoo.recipe import Recipe, Values

_ORDINARY = {recipe.pipeline: recipe for recipe in RECIPES}


def ordinary(pipeline: str, **others: Callable[[], Any]) -> Callable[[], Mapping[str, Any]]:
    """Return the way to make the parts of an ordinary class, and others by name."""

    def parts() -> Mapping[str, Any]:
        return {**_ORDINARY[pipeline].parts(), **{name: make() for name, make in others.items()}}

    return parts


def like(pipeline: str, other: str, request: Values, **changes: Any) -> Recipe:
    """Return the recipe of a modular class that has the parts of the ordinary class `other`."""
    needs = changes.pop("needs", _ORDINARY[other].needs)
    made = changes.pop("parts", {})
    return Recipe(pipeline, ordinary(other, **made), request, needs=needs, modular=True, **changes)
