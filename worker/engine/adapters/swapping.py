"""An attribute swapped for the length of a context."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ABSENT = object()


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let `owner` have `value` as its `name`; afterwards it has the same object as before, or none."""
    original = getattr(owner, name, _ABSENT)
    _put(owner, name, value)
    try:
        yield
    finally:
        _put(owner, name, original)


def _put(owner: Any, name: str, value: Any) -> None:
    # A module keeps modules apart from plain values, and would hold on to the one when given the other.
    if (isinstance(owner, nn.Module) or value is _ABSENT) and hasattr(owner, name):
        delattr(owner, name)
    if value is not _ABSENT:
        setattr(owner, name, value)
