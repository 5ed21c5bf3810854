"""Count how often facts of models and calls are derived."""

from collections import Counter
from functools import cached_property
from typing import Any

import pytest

from worker.catalog.call import Model, ModelCall


class Derivations(Counter[tuple[Any, ...]]):
    """How often each fact was derived, by the fact's name, what it is a fact of, and arguments."""

    def repeated(self) -> dict[tuple[Any, ...], int]:
        """Return the facts that were derived more than once."""
        return {fact: count for fact, count in self.items() if count > 1}

    def named(self, name: str) -> int:
        """Return how often a fact of this name was derived, of whatever model or call."""
        return sum(count for fact, count in self.items() if fact[0] == name)


def counted(monkeypatch: pytest.MonkeyPatch) -> Derivations:
    """Return the counter of all that is derived from now on."""
    derivations = Derivations()

    class Facts(dict[Any, Any]):
        def __init__(self, subject: Model | ModelCall) -> None:
            super().__init__()
            self.subject = _name(subject)

        def __setitem__(self, key: Any, value: Any) -> None:
            derive, *arguments = key
            derivations[derive.__name__, self.subject, repr(arguments)] += 1
            super().__setitem__(key, value)

    for cls in (Model, ModelCall):
        for name, attribute in vars(cls).items():
            if isinstance(attribute, cached_property):
                derive = Facts if name == "facts" else _counting(derivations, name, attribute.func)
                monkeypatch.setattr(attribute, "func", derive)
    return derivations


def _counting(derivations: Derivations, name: str, derive: Any) -> Any:
    def derived(subject: Model | ModelCall) -> Any:
        derivations[name, _name(subject)] += 1
        return derive(subject)

    return derived


def _name(subject: Model | ModelCall) -> tuple[str, ...]:
    """What a model or call is, whatever object stands for it."""
    call = (subject.task, subject.pipeline) if isinstance(subject, ModelCall) else ()
    return (subject.spec.id, *call)
