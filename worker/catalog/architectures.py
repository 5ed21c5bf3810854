"""THE TABLE of model families: one row per architecture, first match wins.

The rows stand in `worker.catalog.families`, by kind of denoiser; this module joins them and finds one. A row is a
literal; nothing registers itself. Each stored header of the tests matches exactly one row.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from pydantic import JsonValue

from worker.catalog.families.flux import FLUXES
from worker.catalog.families.independent import INDEPENDENT
from worker.catalog.families.qwen import QWENS
from worker.catalog.families.row import MEGAPIXEL, Architecture
from worker.catalog.families.stable_diffusion import STABLE_DIFFUSIONS
from worker.catalog.families.transformer import TRANSFORMERS
from worker.catalog.families.unet import UNETS
from worker.catalog.families.video import VIDEOS
from worker.core.errors import ModelNotFound

__all__ = [
    "ARCHITECTURES",
    "MEGAPIXEL",
    "Architecture",
    "alike",
    "architecture",
    "base_of",
    "by_class",
    "find",
    "fits",
    "siblings",
    "variant_defaults",
]

ARCHITECTURES: tuple[Architecture, ...] = (
    *STABLE_DIFFUSIONS,
    *UNETS,
    *FLUXES,
    *QWENS,
    *TRANSFORMERS,
    *INDEPENDENT,
    *VIDEOS,
)


def _by_id(rows: tuple[Architecture, ...]) -> Mapping[str, Architecture]:
    """Index the rows by id. A duplicate is a mistake in the table: it fails when the worker starts."""
    index: dict[str, Architecture] = {}
    for row in rows:
        if row.id in index:
            raise ValueError(f"the architecture id {row.id} stands in the table twice")
        index[row.id] = row
    return MappingProxyType(index)


def _by_class(rows: tuple[Architecture, ...]) -> Mapping[str, Architecture]:
    """Index the rows by the pipeline classes they claim. Siblings claim none: they share another row's."""
    index: dict[str, Architecture] = {}
    for row in rows:
        for name in () if row.sibling else dict.fromkeys((*row.pipelines.values(), *row.classes)):
            if name in index:
                raise ValueError(f"the class {name} is claimed by {index[name].id} and {row.id}")
            index[name] = row
    return MappingProxyType(index)


_IDS = _by_id(ARCHITECTURES)
_CLASSES = _by_class(ARCHITECTURES)


def architecture(id: str) -> Architecture:
    """Return the row with this id. Raises ModelNotFound naming the nearest ids."""
    row = _IDS.get(id)
    if row is None:
        nearest = get_close_matches(id, _IDS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(nearest)}" if nearest else ""
        raise ModelNotFound(f"There is no architecture named {id[:60]!r}{hint}.", field="architecture")
    return row


def find(id: str | None) -> Architecture | None:
    """Return the row with this id, or None."""
    return _IDS.get(id) if id else None


def by_class(class_name: str) -> Architecture | None:
    """Return the row that a repository with this `_class_name` belongs to, or None. Siblings are not told apart."""
    return _CLASSES.get(class_name)


def siblings(row: Architecture) -> tuple[Architecture, ...]:
    """Return the rows that share this row's pipeline classes and are told apart by a config value."""
    return tuple(other for other in ARCHITECTURES if other.sibling == row.id)


def fits(adapter: str | None, model: str | None) -> bool:
    """True if an adapter made for one architecture may be put on another. An unknown base may always be tried."""
    if adapter is None or model is None:
        return True
    adapter_base, model_base = (_IDS[name].adapter_base if name in _IDS else name for name in (adapter, model))
    return adapter_base == model_base or alike(adapter_base, model_base)


def alike(one: str, other: str) -> bool:
    """True if the LoRAs of two families name the same modules, so that their keys cannot tell them apart."""
    return any(name in _IDS and _IDS[name].adapters_like == base for name, base in ((one, other), (other, one)))


def base_of(row: Architecture) -> Architecture:
    """Return the row that adapters for this one are made for: itself, unless it shares another's."""
    return _IDS[row.adapter_base]


def variant_defaults(architecture: str | None, variant: str | None) -> Mapping[str, JsonValue]:
    """Return the defaults in which a variant differs from its row, by diffusers parameter name; {} where it does not.

    They stand between the row's own defaults and those of models.yaml.
    """
    row = _IDS.get(architecture or "")
    return row.variants.get(variant or "", {}) if row else {}
