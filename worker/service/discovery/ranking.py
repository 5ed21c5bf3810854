"""The order of what was found: words first, then how like the wanted model it is, then what people and this worker use.

Downloads and likes count by their powers of ten, so that fame alone never outweighs a word of the search.
"""

from collections.abc import Mapping
from math import log10

from worker.catalog.base_models import known_base
from worker.core.discovery import Find, Listed
from worker.service.accepting.likeness import Nature, family_of, likeness, shared, stem, words_in
from worker.service.discovery.aims import Aim

_WORDS, _FAME, _USE = 4.0, 0.25, 0.5


def promise(listed: Listed, aim: Aim) -> float:
    """Return how much an entry promises, by its page alone: the most promising ones are looked at."""
    base = known_base(listed.base) if listed.base else None
    nature = Nature(family_of(base.architecture) if base else None, base.variant if base else None, _words(listed))
    return _score(listed, nature, aim)


def worth(find: Find, aim: Aim, uses: Mapping[str, int]) -> float:
    """Return the place of a find among others: the highest first. `uses` counts jobs here by stem and by family."""
    family = family_of(find.architecture)
    used = uses.get(stem(find.listed.reference), 0) + uses.get(family or "", 0)
    return _score(find.listed, Nature(family, find.variant, _words(find.listed)), aim) + _USE * log10(1 + used)


def _score(listed: Listed, nature: Nature, aim: Aim) -> float:
    fame = log10(1 + listed.downloads) + log10(1 + listed.likes)
    return _WORDS * shared(aim.words, nature.words) + likeness(aim.nature, nature) + _FAME * fame


def _words(listed: Listed) -> frozenset[str]:
    return words_in([listed.name, *listed.tags, *listed.trigger_words])
