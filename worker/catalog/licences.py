"""Licences of models as their pages name them, and what a training on one has to know."""

import re

_NOT_FOR_TRADE = re.compile(r"non-?commercial|(^|[-_ ])nc([-_ ]|$)|research[-_ ]only|commercial use: none", re.I)
_NOT_CHANGED = re.compile(r"no[- ]derivatives|(^|[-_ ])nd([-_ ]|$)", re.I)
_UNNAMED = frozenset({"other", "unknown"})


def warning_of(model: str, licence: str | None) -> str | None:
    """Return a sentence for whoever trains on `model`; None where its licence is plain and allows trade."""
    if licence is None or licence.lower() in _UNNAMED:
        known = "not known here" if licence is None else f"one of its own ({licence})"
        return f"The licence of {model} is {known}: read its page before you use or publish what is trained on it."
    if _NOT_FOR_TRADE.search(licence):
        return f"The licence of {model}, {licence}, forbids commercial use, and binds what is trained on it."
    if _NOT_CHANGED.search(licence):
        return f"The licence of {model}, {licence}, allows no derivatives: read its page before you publish any."
    return None
