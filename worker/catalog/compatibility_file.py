"""Reader of compatibility.yaml: what the operator knows to work, to be broken, or to need something. Pure matching.

Of rows about the same thing the first one that matches counts, so that an exception stands above its rule.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from worker.catalog.operator_file import FileError, OperatorFile
from worker.core.device import DeviceInfo
from worker.core.model import Parsed

_GIB = 2**30
_NOMINAL = 0.95  # of a card's gigabytes are told by its driver
ANY = "*"

_Name = Annotated[str, Field(min_length=1, max_length=512)]


class CompatibilityError(FileError):
    """A compatibility.yaml that cannot be used. The message starts with `compatibility.yaml:LINE: `."""


class Needs(Parsed):
    """What a model or a combination needs: memory of the device, and values of parameters by their diffusers names."""

    vram_gb: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class Row(Parsed):
    """One row. `model` and `with` are ids, references or families, or `*`; `device` is a type or a part of a name.

    `then` says what becomes of a job: it is refused, or warned of. A row that says `works` does neither.
    """

    model: _Name
    beside: _Name | None = Field(default=None, alias="with")
    device: _Name | None = None
    state: Literal["works", "broken", "needs"] = Field(alias="is")
    needs: Needs | None = None
    because: str = Field(default="", max_length=500)
    then: Literal["refuse", "warn"] = "refuse"


class _File(Parsed):
    rows: tuple[JsonValue, ...] = ()


@dataclass(frozen=True, slots=True)
class Fact:
    """A row that holds, as the second half of a sentence that the model's name begins."""

    text: str
    state: Literal["works", "broken", "needs"]
    refuses: bool
    beside: bool = False  # True if it is of an adapter with the model


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and what goes beside it, each by all of its names, and a job's parameters; None before there is one."""

    names: Collection[str]
    beside: Sequence[Collection[str]] = ()
    parameters: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, slots=True)
class Matrix:
    """The rows of a file, each with its line."""

    rows: tuple[tuple[int, Row], ...] = ()
    file: str = "compatibility.yaml"

    def asks_for_device(self, subject: Subject) -> bool:
        """True if what is known of `subject` depends on the device."""
        return any(
            (row.device or (row.needs and row.needs.vram_gb)) and _is_named(row.model, subject.names)
            for _, row in self.rows
        )

    def facts(self, subject: Subject, device: DeviceInfo | None) -> tuple[Fact, ...]:
        """Return what is known of `subject`. Rows about a device hold where it is known."""
        return tuple(self._facts(subject, device))

    def _facts(self, subject: Subject, device: DeviceInfo | None) -> Iterator[Fact]:
        settled: set[int | None] = set()  # the places beside the model of which a row has spoken; None is the model
        for line, row in self.rows:
            if not _is_named(row.model, subject.names) or not _is_on(row.device, device):
                continue
            beside = row.beside
            about: list[int | None] = [None]
            if beside is not None:
                about = [place for place, names in enumerate(subject.beside) if _is_named(beside, names)]
            if row.state == "needs":
                if about and (unmet := _unmet(row.needs or Needs(), subject, device)):
                    yield self._fact(line, row, f"needs {unmet}")
                continue
            new = [place for place in about if place not in settled]
            settled.update(new)
            if new:
                yield self._fact(line, row, "works" if row.state == "works" else "does not work")

    def _fact(self, line: int, row: Row, says: str) -> Fact:
        beside = f" with {row.beside}" if row.beside else ""
        place = f" on {row.device}" if row.device else ""
        because = f": {row.because.rstrip('.')}" if row.because else ""
        refuses = row.state != "works" and row.then == "refuse"
        text = f"{says}{beside}{place}, by {self.file}:{line}{because}"
        return Fact(text, row.state, refuses, row.beside is not None)


def read_compatibility(path: Path) -> Matrix:
    """Read and check a compatibility.yaml. Raises CompatibilityError, with the line."""
    return _Reading(path).matrix()


class _Reading(OperatorFile):
    """One reading of one file."""

    error = CompatibilityError
    keys = "rows"
    nested = MappingProxyType({"needs": Needs})

    def matrix(self) -> Matrix:
        file = self.parsed(_File, self.data(), ())
        return Matrix(tuple(self.row(number, item) for number, item in enumerate(file.rows)), self.path.name)

    def row(self, number: int, item: JsonValue) -> tuple[int, Row]:
        """Return one row and its line."""
        place = ("rows", number)
        row = self.parsed(Row, item, place)
        needs = row.needs is not None and (row.needs.vram_gb is not None or row.needs.parameters)
        if (row.state == "needs") != bool(needs):
            text = "a row that is: needs says what, as needs: {vram_gb: 24}; other rows need nothing."
            raise self.fail(place, text)
        return self.line(place), row


def _is_named(name: str, names: Collection[str]) -> bool:
    return name == ANY or name.casefold() in {each.casefold() for each in names}


def _is_on(wanted: str | None, device: DeviceInfo | None) -> bool:
    if wanted is None:
        return True
    return device is not None and (wanted.lower() == device.type or wanted.lower() in device.name.lower())


def _unmet(needs: Needs, subject: Subject, device: DeviceInfo | None) -> str:
    """Return what of the needs is not there, as far as it is known; "" where nothing is missing."""
    unmet: list[str] = []
    if needs.vram_gb is not None and device is not None and device.total_bytes < needs.vram_gb * _GIB * _NOMINAL:
        unmet.append(f"{needs.vram_gb:g} GB of memory, and {device.name} has {device.total_bytes / _GIB:.1f} GiB")
    for name, value in needs.parameters.items():
        if subject.parameters is not None and subject.parameters.get(name) != value:
            unmet.append(f"{name} {value}")
    return " and ".join(unmet)
