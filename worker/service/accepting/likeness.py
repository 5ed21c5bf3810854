"""How much one model is like another: what stands in for it, and what is recommended with it or in its place.

A model of another family draws another image, so that nothing outweighs the family. Within it the training counts
(turbo, pony …), then the words of names, tags and descriptions.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from worker.catalog import architectures
from worker.core.model import ModelSpec

_PLACE = re.compile(r"[@#?]")
_WORD = re.compile(r"[^\W_]{3,}")
# Words that every second model's page has, and the families': they tell none from another.
_COMMON = frozenset(row.id for row in architectures.ARCHITECTURES) | frozenset({
    "and", "art", "best", "checkpoint", "civitai", "diffusers", "diffusion", "for", "from", "generation", "high",
    "huggingface", "image", "images", "lora", "merge", "model", "models", "org", "quality", "safetensors",
    "stable", "style", "text", "that", "the", "this", "with",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Nature:
    """What is compared of a model: its family, its training of the same shapes, and its words."""

    family: str | None
    variant: str | None = None
    words: frozenset[str] = frozenset()

    @classmethod
    def of(cls, spec: ModelSpec) -> "Nature":
        """Return the nature of a registered model, as its entry declares it."""
        return cls(family_of(spec.architecture), None, words_in([spec.id, *spec.aliases, spec.description or ""]))


def stem(reference: str) -> str:
    """Return a reference without revision and file: what stays the same from version to version."""
    return _PLACE.split(reference, maxsplit=1)[0]


def family_of(name: str | None) -> str | None:
    """Return the family whose adapters an architecture takes; None of one that is not known."""
    row = architectures.find(name)
    return row.adapter_base if row else None


def words_in(texts: Iterable[str]) -> frozenset[str]:
    """Return the telling words of some texts, in lower case."""
    return frozenset(word for text in texts for word in _WORD.findall(text.lower())) - _COMMON


def likeness(one: Nature, other: Nature) -> float:
    """Return how alike two models are: 0 across families, else 1, up to 3 with the same training and words."""
    if one.family is None or one.family != other.family:
        return 0.0
    trained = 1.0 if one.variant == other.variant else 0.0
    return 1.0 + trained + shared(one.words, other.words)


def shared(wanted: frozenset[str], words: frozenset[str]) -> float:
    """Return the share of `wanted` that `words` has, from 0 to 1; a word counts within a longer one, too."""
    if not wanted:
        return 0.0
    return sum(any(word in each for each in words) for word in wanted) / len(wanted)
