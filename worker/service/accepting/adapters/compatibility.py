"""Whether an adapter suits a model, and which field is named where it does not."""

from collections.abc import Iterator
from contextlib import contextmanager

from worker.catalog.architectures import ARCHITECTURES, fits
from worker.core.errors import (
    IncompatibleAdapter,
    WorkerError,
)
from worker.core.model import Detection, Kind


@contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """Name `field` in what goes wrong: the store takes every source for a model."""
    try:
        yield
    except WorkerError as error:
        if error.field in (None, "model"):
            error.field = field
        raise


def check_family(found: Detection, wanted: str | None, model: str, name: str, field: str, what: str) -> None:
    """Raise IncompatibleAdapter where adapter `name`, a `what`, was made for another family than `model`'s."""
    if fits(found.architecture, wanted):
        return
    raise IncompatibleAdapter(
        f"{field}: {name} was made for {family_title(found.architecture)} and {model} is {family_title(wanted)}; "
        f"use a {what} of that family.",
        field=field,
        details={"adapter": found.architecture, "model": wanted, "evidence": list(found.evidence)},
    )


def check_kind(found: Detection, kinds: tuple[Kind, ...], name: str, field: str, what: str) -> None:
    """Raise IncompatibleAdapter where adapter `name` is not one of `kinds`, which callers call `what`."""
    if found.kind not in kinds:
        one = f"{'an' if what[0] in 'AEIOU' else 'a'} {what}"
        seen = "nothing that is known here" if found.kind is Kind.UNKNOWN else f"a {found.kind}"
        raise IncompatibleAdapter(
            f"{field}: {name} is {seen}, not {one}; name {one} file.",
            field=field,
            details={"evidence": list(found.evidence)},
        )


def family_title(name: str | None) -> str:
    """A family's name as people write it."""
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")
