"""From a wish to an aim: which kinds of which family, and what each source is asked for. No request is made here."""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.catalog import architectures
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.base_models import Base, known_base
from worker.catalog.call import Model
from worker.core.discovery import DiscoverRequest, FindKind
from worker.core.errors import InvalidRequest
from worker.service.accepting.likeness import Nature, family_of, words_in
from worker.service.discovery.kinds import GO_WITH_MODELS, KINDS, kind_meant


@dataclass(frozen=True, slots=True)
class Aim:
    """What is looked for. `text` is what goes to the sources; `words` and `nature` order what they list."""

    kinds: tuple[FindKind, ...]
    text: str
    words: frozenset[str]
    architecture: str | None = None
    variant: str | None = None
    model: Model | None = None

    @property
    def nature(self) -> Nature:
        """What a find is compared with."""
        return Nature(self.family, self.variant, self.words)

    @property
    def family(self) -> str | None:
        """The family that a find has to be of; None where any will do."""
        return family_of(self.architecture)

    @property
    def civitai_bases(self) -> tuple[str, ...]:
        """CivitAI's names for the base models of the family: of one training where one is meant, else all of them."""
        if self.architecture is None:
            return ()
        # An adapter goes with the whole family, a model is of one architecture; some have no name of their own there.
        own = [name for row in ARCHITECTURES if row.id == self.architecture for name in row.civitai]
        kin = [name for row in ARCHITECTURES if row.adapter_base == self.family for name in row.civitai]
        names = kin if self._adapts or not own else own
        trained = [name.text for name in names if self.variant and name.variant == self.variant]
        return tuple(trained or [name.text for name in names])

    def hub_tags(self, kind: FindKind) -> tuple[str, ...]:
        """Return the tags that a repository of this kind has; for an adapter its base model's, where one is known."""
        row = KINDS[kind]
        base = self._base_repository if row.field in {"loras", "embeddings"} else None
        return (*row.hub, f"base_model:{base}") if base else row.hub

    def hub_text(self, kind: FindKind) -> str:
        """Return the words that a repository's name has to have."""
        return " ".join(filter(None, (self.text, KINDS[kind].hub_word)))

    @property
    def _adapts(self) -> bool:
        return any(KINDS[kind].field is not None for kind in self.kinds)

    @property
    def _base_repository(self) -> str | None:
        source = self.model.spec.source if self.model else None
        if source is not None and source.is_repository and not source.filename:
            return source.locator
        row = architectures.find(self.architecture)
        return row.base_repo if row else None


def aim_of(wish: DiscoverRequest, model: Model | None) -> Aim:
    """Return the aim of `wish`; `model` is the one that it names. Raises InvalidRequest for an unknown base.

    Words of the text that mean a kind or a base are taken as such, and only the others are looked for.
    """
    kind, base, rest = _read(wish.text)
    if wish.base is not None:
        base = _named(wish.base)
    kind = wish.kind or kind
    kinds = (kind,) if kind else GO_WITH_MODELS if model else ("model",)
    words = words_in([" ".join(rest), wish.prompt])
    architecture, variant = (base.architecture, base.variant) if base else (None, None)
    if model is not None:
        architecture, variant = model.architecture.id if model.architecture else None, model.detection.variant
        # An adapter for one training of a family goes with all of it.
        variant = None if kinds != ("model",) else variant
    return Aim(kinds, " ".join(rest), words, architecture, variant, model)


def _read(text: str) -> tuple[FindKind | None, Base | None, list[str]]:
    """Return the kind and the base that a text names, and its other words."""
    kind: FindKind | None = None
    base: Base | None = None
    rest: list[str] = []
    words = text.split()
    while words:
        count, meant = _base_at(words) if base is None else (0, None)
        if meant is not None:
            base, words = meant, words[count:]
        elif kind is None and (named := kind_meant(words[0])):
            kind, words = named, words[1:]
        else:
            rest.append(words.pop(0))
    return kind, base, rest


def _base_at(words: list[str]) -> tuple[int, Base | None]:
    """Return the base that stands at the beginning of `words`, and how many of them mean it: as few as do."""
    count, base = 0, None
    for length in range(1, min(3, len(words)) + 1):
        if kind_meant(words[length - 1]) is not None:
            break
        meant = known_base(" ".join(words[:length]))
        # "red flux" holds a name too, which the second word has by itself.
        alone = length > 1 and base is None and any(known_base(word) for word in words[1:length])
        if meant is not None and meant.architecture is not None and meant != base and not alone:
            count, base = length, meant
    return count, base


def _named(text: str) -> Base:
    row = architectures.find(text.strip().lower())
    if row is not None:
        return Base(row.id)
    base = known_base(text)
    if base is None or base.architecture is None:
        nearest = ", ".join(sorted(_nearest(text)))
        reason = f"{text[:60]!r} {base.refused}" if base and base.refused else f"{text[:60]!r} is no family known here"
        raise InvalidRequest(f"base: {reason}; name one as {nearest}.", field="base")
    return base


def _nearest(text: str) -> Iterator[str]:
    letters = text.strip().lower()[:1]
    near = [row.id for row in ARCHITECTURES if row.id.startswith(letters)][:4]
    yield from near or [row.id for row in ARCHITECTURES][:3]
