"""Checks that an adapter suits a model; errors name the adapter's field."""

from collections.abc import Iterator
from contextlib import contextmanager

from worker.catalog.architectures import ARCHITECTURES, fits
from worker.catalog.interface.adapters import ADAPTERS
from worker.core.call import KnownModel
from worker.core.errors import (
    IncompatibleAdapter,
    WorkerError,
)
from worker.core.model import AdapterSpec, Detection, Kind


@contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """Name `field` in errors: the store takes every source for a model."""
    try:
        yield
    except WorkerError as error:
        if error.field in (None, "model"):
            error.field = field
        raise


def check_family(detection: Detection, spec: AdapterSpec, model: KnownModel) -> None:
    """Raise IncompatibleAdapter if an adapter was made for another family than the called model's."""
    wanted = model.detection.architecture
    if fits(detection.architecture, wanted):
        return
    raise IncompatibleAdapter(
        f"{spec.field}: {spec.model} was made for {family_title(detection.architecture)} and {model.spec.id} is "
        f"{family_title(wanted)}; use a {ADAPTERS[spec.field].title} of that family.",
        field=spec.field,
        details={"adapter": detection.architecture, "model": wanted, "evidence": list(detection.evidence)},
    )


def check_kind(detection: Detection, spec: AdapterSpec) -> None:
    """Raise IncompatibleAdapter if an adapter is not of its field's kind."""
    kind = ADAPTERS[spec.field]
    if detection.kind not in kind.kinds:
        expected = f"{'an' if kind.title[0] in 'AEIOU' else 'a'} {kind.title}"
        actual = "nothing that is known here" if detection.kind is Kind.UNKNOWN else f"a {detection.kind}"
        raise IncompatibleAdapter(
            f"{spec.field}: {spec.model} is {actual}, not {expected}; name {expected} file.",
            field=spec.field,
            details={"evidence": list(detection.evidence)},
        )


def family_title(name: str | None) -> str:
    """Return a family's name as people write it."""
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")
