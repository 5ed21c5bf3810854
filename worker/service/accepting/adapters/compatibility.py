"""Whether an adapter suits a model, and which field is named where it does not."""

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
    """Name `field` in what goes wrong: the store takes every source for a model."""
    try:
        yield
    except WorkerError as error:
        if error.field in (None, "model"):
            error.field = field
        raise


def check_family(found: Detection, spec: AdapterSpec, model: KnownModel) -> None:
    """Raise IncompatibleAdapter where an adapter was made for another family than that of the model that is called."""
    wanted = model.detection.architecture
    if fits(found.architecture, wanted):
        return
    raise IncompatibleAdapter(
        f"{spec.field}: {spec.model} was made for {family_title(found.architecture)} and {model.spec.id} is "
        f"{family_title(wanted)}; use a {ADAPTERS[spec.field].title} of that family.",
        field=spec.field,
        details={"adapter": found.architecture, "model": wanted, "evidence": list(found.evidence)},
    )


def check_kind(found: Detection, spec: AdapterSpec) -> None:
    """Raise IncompatibleAdapter where an adapter is none of its field's kind."""
    kind = ADAPTERS[spec.field]
    if found.kind not in kind.kinds:
        one = f"{'an' if kind.title[0] in 'AEIOU' else 'a'} {kind.title}"
        seen = "nothing that is known here" if found.kind is Kind.UNKNOWN else f"a {found.kind}"
        raise IncompatibleAdapter(
            f"{spec.field}: {spec.model} is {seen}, not {one}; name {one} file.",
            field=spec.field,
            details={"evidence": list(found.evidence)},
        )


def family_title(name: str | None) -> str:
    """A family's name as people write it."""
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")
