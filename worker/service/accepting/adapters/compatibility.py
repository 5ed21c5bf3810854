"""Checks that an adapter suits a model; errors name the adapter's field."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.catalog.architectures import ARCHITECTURES, fits
from worker.catalog.interface.adapters import ADAPTERS
from worker.core.call import KnownModel
from worker.core.errors import (
    IncompatibleAdapter,
    WorkerError,
)
from worker.core.model import AdapterSpec, Detection, Kind

Spec = TypeVar("Spec", bound=AdapterSpec)


@contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """Name `field` in errors: the store takes every source for a model."""
    try:
        yield
    except WorkerError as error:
        if error.field in (None, "model"):
            error.field = field
        raise


@dataclass(frozen=True, slots=True)
class Inspected(Generic[Spec]):
    """An adapter that a request names, with what its file shows."""

    spec: Spec
    detection: Detection

    def check_kind(self) -> None:
        """Raise IncompatibleAdapter if the file is not of its field's kind."""
        kind = ADAPTERS[self.spec.field]
        if self.detection.kind not in kind.kinds:
            expected = f"{'an' if kind.title[0] in 'AEIOU' else 'a'} {kind.title}"
            unknown = self.detection.kind is Kind.UNKNOWN
            actual = "nothing that is known here" if unknown else f"a {self.detection.kind}"
            raise IncompatibleAdapter(
                f"{self.spec.field}: {self.spec.model} is {actual}, not {expected}; name {expected} file.",
                field=self.spec.field,
                details={"evidence": list(self.detection.evidence)},
            )

    def check_family(self, model: KnownModel) -> None:
        """Raise IncompatibleAdapter if the adapter was made for another family than the called model's."""
        made_for, wanted = self.detection.architecture, model.detection.architecture
        if fits(made_for, wanted):
            return
        raise IncompatibleAdapter(
            f"{self.spec.field}: {self.spec.model} was made for {family_title(made_for)} and {model.spec.id} is "
            f"{family_title(wanted)}; use a {ADAPTERS[self.spec.field].title} of that family.",
            field=self.spec.field,
            details={"adapter": made_for, "model": wanted, "evidence": list(self.detection.evidence)},
        )


def family_title(name: str | None) -> str:
    """Return a family's name as people write it."""
    return next((row.title for row in ARCHITECTURES if row.id == name), name or "unknown")
