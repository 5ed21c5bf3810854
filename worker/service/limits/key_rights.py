"""Rights of API keys: which models each may use, and its share of the worker where others wait."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from worker.core.errors import AccessDenied

MAX_WEIGHT = 1_000.0


@dataclass(frozen=True, slots=True)
class KeyRight:
    """The right of one caller. `models` are patterns of model ids; None is every model.

    Of what callers compete for, one of weight 2 gets twice as much as one of weight 1.
    """

    models: tuple[str, ...] | None = None
    weight: float = 1.0


_EVERYTHING = KeyRight()


class KeyRights:
    """The rights of all callers by name. One who has none noted may use every model, with weight 1."""

    def __init__(self, rights: Mapping[str, KeyRight] | None = None) -> None:
        self._rights = dict(rights or {})
        self.several = False
        """True if there are several callers, who are to leave each other room."""

    def replace(self, rights: Mapping[str, KeyRight], *, several: bool) -> None:
        """Have these rights hold from now on."""
        self._rights, self.several = dict(rights), several

    def weight(self, caller: str | None) -> float:
        """Return the weight of a caller's share."""
        return self._of(caller).weight

    def may_use(self, caller: str | None, model: str) -> bool:
        """True if a caller may use the model of this id, or of this reference."""
        patterns = self._of(caller).models
        return patterns is None or any(fnmatchcase(model, pattern) for pattern in patterns)

    def check(self, caller: str | None, model: str, field: str = "model") -> None:
        """Raise AccessDenied, naming `field`, unless the caller may use this model."""
        if not self.may_use(caller, model):
            allowed = ", ".join(self._of(caller).models or ()) or "none"
            raise AccessDenied(
                f"{field}: this key may not use {model[:120]}; its models are {allowed}. The operator can add it to "
                "the key's line in API_KEYS_FILE.",
                field=field,
                details={"models": [*(self._of(caller).models or ())]},
            )

    def _of(self, caller: str | None) -> KeyRight:
        return self._rights.get(caller, _EVERYTHING) if caller is not None else _EVERYTHING
