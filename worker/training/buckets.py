"""Sizes for images of every shape: as many pixels as the model knows, and as little cut away as can be."""

from collections.abc import Iterator
from math import sqrt

_MAX_ASPECT = 2.0


def sizes(side: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Yield widths and heights in pixels of at most `side` x `side` pixels in area, each a multiple of `multiple`."""
    area = side * side
    for width in range(multiple, int(side * sqrt(_MAX_ASPECT)) + multiple, multiple):
        height = area // width // multiple * multiple
        if height and max(width, height) <= _MAX_ASPECT * min(width, height):
            yield width, height


def bucket(width: int, height: int, side: int, multiple: int) -> tuple[int, int]:
    """Return the size for an image of these pixels: the one whose shape is nearest to its own."""
    aspect = width / height
    return min(sizes(side, multiple), key=lambda size: (_stretch(size[0] / size[1], aspect), -size[0] * size[1]))


def own_size(width: int, height: int, side: int, multiple: int) -> tuple[int, int]:
    """Return the size that is nearest to an image's own shape, of half as many pixels as `side` x `side` or more."""
    aspect, area = width / height, side * side
    widths = range(multiple, area // multiple + 1, multiple)
    found = ((each, max(1, round(each / aspect / multiple)) * multiple) for each in widths)
    fitting = [size for size in found if size[0] * size[1] <= area]

    def worth(size: tuple[int, int]) -> tuple[bool, float, int]:
        pixels = size[0] * size[1]
        return 2 * pixels < area, _stretch(size[0] / size[1], aspect), -pixels

    return min(fitting, key=worth)


def _stretch(one: float, other: float) -> float:
    return max(one / other, other / one)
