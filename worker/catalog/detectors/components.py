"""Signatures of diffusers' model classes: a component file without its config is recognised by its tensor names.

`python -m tools.component_signatures` makes the table from the installed diffusers; reading it needs nothing of
diffusers. A file resembles a class by the share of names that both have (Jaccard). A share below `ENOUGH` is no match.
Classes with an equal share are a tie, and the result lists them all.
"""

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from worker.core.model import Kind, TensorIndex

FILE = Path(__file__).parent / "component_signatures.json.gz"
ENOUGH = 0.75
_FEWEST_NAMES = 8  # fewer shared names than this are met by chance
_NUMBER = re.compile(r"(?<![A-Za-z_])\d+(?![A-Za-z_])")
_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "model.model.",
    "transformer.",
    "unet.",
    "vae.",
    "first_stage_model.",
    "controlnet.",
)
# A class that has another one's names in a size that the table was not made from: Wan 2.2's blocks are residual ones.
_ALSO: Mapping[str, str] = {"AutoencoderKLQwenImage21": "AutoencoderKLWan"}


@dataclass(frozen=True, slots=True)
class ComponentClass:
    """A model class of diffusers. `pipelines` are those that take it, the plainest name first."""

    name: str
    kind: Kind
    names: frozenset[str]
    pipelines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Likeness:
    """The classes that a file resembles most, several if their names are the same, and the share of names (0..1)."""

    classes: tuple[ComponentClass, ...]
    share: float


def normalised(name: str) -> str:
    """Replace the numbers of blocks and layers, so that models of any depth have one signature."""
    return _NUMBER.sub("#", name)


@cache
def component_classes() -> Mapping[str, ComponentClass]:
    """Return every known class by its name; read once."""
    table = json.loads(gzip.decompress(FILE.read_bytes()))["classes"]
    return {
        name: ComponentClass(name, Kind(row["kind"]), frozenset(row["names"]), tuple(row["pipelines"]))
        for name, row in table.items()
    }


@cache
def _owners() -> Mapping[str, tuple[str, ...]]:
    owners: dict[str, list[str]] = {}
    for row in component_classes().values():
        for name in row.names:
            owners.setdefault(name, []).append(row.name)
    return {name: tuple(classes) for name, classes in owners.items()}


def resemble(index: TensorIndex) -> Likeness | None:
    """Return the classes whose tensor names the file has, or None."""
    return resemble_names(_without_prefix(index.tensors))


def resemble_names(names: Iterable[str]) -> Likeness | None:
    """Return the classes that have these tensor names, or None."""
    patterns = {normalised(name) for name in names}
    shared: dict[str, int] = {}
    owners = _owners()
    for pattern in patterns:
        for name in owners.get(pattern, ()):
            shared[name] = shared.get(name, 0) + 1
    classes = component_classes()
    best: list[ComponentClass] = []
    share = ENOUGH
    for name, count in shared.items():
        row = classes[name]
        similarity = count / (len(patterns) + len(row.names) - count)
        if count >= min(_FEWEST_NAMES, len(row.names)) and similarity >= share:
            best = [row] if similarity > share else [*best, row]
            share = similarity
    best += [classes[_ALSO[row.name]] for row in best if row.name in _ALSO]
    return Likeness(tuple(sorted(best, key=lambda row: row.name)), share) if best else None


def _without_prefix(names: Iterable[str]) -> list[str]:
    """Return the names without a tool's prefix, if nearly all of them have it."""
    all_names = list(names)
    for prefix in _PREFIXES:
        stripped = [name[len(prefix) :] for name in all_names if name.startswith(prefix)]
        if len(stripped) > 0.9 * len(all_names):
            return stripped
    return all_names
