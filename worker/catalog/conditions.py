"""Predicates over a weight file's header, as data: the condition of a table's row. Nothing runs on import.

A condition is a frozen object. Calling it answers yes or no. `match` returns the evidence, or None. `score` is the
share of it that holds: it finds the rows that an unknown file resembles most. Names are looked up, not searched, so
that forty rows cost microseconds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from worker.core.model import TensorIndex


class Condition(Protocol):
    """A row's condition on a header. `prefix` stands before every tensor name it looks for."""

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        """Return short facts that show that the condition holds, or None."""
        ...

    def score(self, index: TensorIndex, prefix: str = "") -> float:
        """Return the share of the condition that holds, 0..1."""
        ...

    def __call__(self, index: TensorIndex) -> bool:
        """True if the condition holds."""
        ...


class _Predicate:
    """The common part of all conditions: the answer and the score follow from the evidence."""

    __slots__ = ()

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        raise NotImplementedError

    def score(self, index: TensorIndex, prefix: str = "") -> float:
        return 0.0 if self.match(index, prefix) is None else 1.0

    def __call__(self, index: TensorIndex) -> bool:
        return self.match(index) is not None


@dataclass(frozen=True, slots=True)
class _Has(_Predicate):
    names: tuple[str, ...]
    enough: int

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        names = [prefix + name for name in self.names if prefix + name in index.tensors]
        return tuple(f"has {name}" for name in names[: self.enough]) if len(names) >= self.enough else None


@dataclass(frozen=True, slots=True)
class _OfTensor(_Predicate):
    name: str

    def score(self, index: TensorIndex, prefix: str = "") -> float:
        if self.match(index, prefix) is not None:
            return 1.0
        return 0.25 if prefix + self.name in index.tensors else 0.0


@dataclass(frozen=True, slots=True)
class _Dimension(_OfTensor):
    axis: int
    values: tuple[int, ...]

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        tensor = index.tensors.get(prefix + self.name)
        if tensor is None or not -len(tensor[1]) <= self.axis < len(tensor[1]):
            return None
        return (f"{prefix}{self.name} is {tensor[1]}",) if tensor[1][self.axis] in self.values else None


@dataclass(frozen=True, slots=True)
class _Shape(_OfTensor):
    shape: tuple[int, ...]

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        tensor = index.tensors.get(prefix + self.name)
        return (f"{prefix}{self.name} is {self.shape}",) if tensor and tensor[1] == self.shape else None


@dataclass(frozen=True, slots=True)
class _Prefixed(_Predicate):
    prefixes: tuple[str, ...]

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        prefixes = tuple(prefix + start for start in self.prefixes)
        for name in index.tensors:
            if name.startswith(prefixes):
                return (f"has {name}",)
        return None


@dataclass(frozen=True, slots=True)
class _All(_Predicate):
    parts: tuple[Condition, ...]

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        evidence: list[str] = []
        for part in self.parts:
            facts = part.match(index, prefix)
            if facts is None:
                return None
            evidence.extend(facts)
        return tuple(evidence)

    def score(self, index: TensorIndex, prefix: str = "") -> float:
        parts = [part for part in self.parts if not isinstance(part, _None)]  # an absence shows nothing
        return sum(part.score(index, prefix) for part in parts) / len(parts)


@dataclass(frozen=True, slots=True)
class _Any(_Predicate):
    parts: tuple[Condition, ...]

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        for part in self.parts:
            facts = part.match(index, prefix)
            if facts is not None:
                return facts
        return None

    def score(self, index: TensorIndex, prefix: str = "") -> float:
        return max(part.score(index, prefix) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _None(_Predicate):
    parts: tuple[Condition, ...]

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        return None if any(part.match(index, prefix) is not None for part in self.parts) else ()


@dataclass(frozen=True, slots=True)
class _Under(_Predicate):
    prefixes: tuple[str, ...]
    part: Condition

    def match(self, index: TensorIndex, prefix: str = "") -> tuple[str, ...] | None:
        for start in self.prefixes:
            facts = self.part.match(index, prefix + start)
            if facts is not None:
                return facts
        return None

    def score(self, index: TensorIndex, prefix: str = "") -> float:
        return max(self.part.score(index, prefix + start) for start in self.prefixes)


def has_all(*names: str) -> Condition:
    """Condition that all of these tensors are in the file."""
    return _Has(names, len(names))


def has_any(*names: str) -> Condition:
    """Condition that at least one of these tensors is in the file."""
    return _Has(names, 1)


def has_prefix(*prefixes: str) -> Condition:
    """Condition that some tensor's name starts with one of these."""
    return _Prefixed(prefixes)


def dimension(name: str, axis: int, *values: int) -> Condition:
    """Condition that the tensor is in the file and its size along `axis` is one of `values`."""
    return _Dimension(name, axis, values)


def shape_is(name: str, *shape: int) -> Condition:
    """Condition that the tensor is in the file with exactly this shape."""
    return _Shape(name, shape)


def all_of(*parts: Condition) -> Condition:
    """Condition that every part holds."""
    return _All(parts)


def any_of(*parts: Condition) -> Condition:
    """Condition that at least one part holds; the first that does gives the evidence."""
    return _Any(parts)


def none_of(*parts: Condition) -> Condition:
    """Condition that no part holds."""
    return _None(parts)


def under(prefixes: Iterable[str], part: Condition) -> Condition:
    """Condition that `part` holds for the names below one of these prefixes."""
    return _Under(tuple(prefixes), part)


@dataclass(frozen=True, slots=True)
class ConfigCondition:
    """A value in one of a repository's JSON files, for families that share a pipeline class."""

    file: str
    key: str
    values: tuple[object, ...]

    def match(self, configs: Mapping[str, Mapping[str, object]]) -> tuple[str, ...] | None:
        """Return the fact that shows that the condition holds, or None."""
        config = configs.get(self.file)
        if config is None or self.key not in config:
            return None
        value = config[self.key]
        # True == 1 in Python, and a flag is not a size
        matches = any(type(value) is type(expected) and value == expected for expected in self.values)
        return (f"{self.file}: {self.key} is {value}",) if matches else None


def config_is(file: str, key: str, *values: object) -> ConfigCondition:
    """Condition that the repository's `file` has one of these values at its top-level `key`."""
    return ConfigCondition(file, key, values)
