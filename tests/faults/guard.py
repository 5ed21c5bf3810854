"""A guard of the fault table: where it stands, what the source is without it, and which tests notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard. `stands` is a text that its file has once; `gone` takes its place."""

    row: str
    name: str
    file: str
    stands: str
    gone: str
    tests: tuple[str, ...]
    momentary: bool = False
    """Whether a figure of the moment is what notices: then those are held to their bars too."""
