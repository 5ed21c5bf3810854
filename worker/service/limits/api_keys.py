"""API keys, which identify callers: each known by its SHA-256 only, with a name."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.service.limits.key_rights import MAX_WEIGHT, KeyRight

PREFIX = "uimw_"
MIN_KEY_CHARS = 16
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeyListError(ValueError):
    """A list of keys that cannot be used. The message never holds a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. Without keys callers have no name, and every caller may do everything."""

    name: str | None = None
    admin: bool = True


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys that open this worker: the SHA-256 of each, as hex, with its owner's name.

    Without any `callers` the worker is open to everybody. With `admins`, only these may use the operator's actions.
    """

    callers: Mapping[str, str] = field(default_factory=dict)
    admins: Mapping[str, str] = field(default_factory=dict)
    rights: Mapping[str, KeyRight] = field(default_factory=dict)
    """The rights of callers by name, where their line says some."""

    def identify(self, key: str | None) -> Caller | None:
        """Return the caller that sends this key; None for a caller who is refused."""
        digest = _digest(key) if key is not None else ""
        if (name := _find(self.admins, digest)) is not None:
            return Caller(name, admin=True)
        if (name := _find(self.callers, digest)) is not None:
            return Caller(name, admin=not self.admins)
        # Clients that insist on a key send any key; an open worker accepts it.
        return None if self.callers else Caller(None, admin=not self.admins)

    def named(self, name: str | None) -> Caller | None:
        """Return the caller of this name, who proved it before; None if their key is taken away since."""
        if name is None:
            return self.identify(None)
        if name in self.admins.values():
            return Caller(name, admin=True)
        return Caller(name, admin=not self.admins) if name in self.callers.values() else None


def new_key(name: str) -> tuple[str, str]:
    """Make a key of 256 random bits, and the line by which a worker knows it. Raises KeyListError for a bad name."""
    if not _NAME.fullmatch(name):
        raise KeyListError("A key's name is 1 to 64 letters, digits, dots, dashes or underscores.")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{_digest(key)}"


def parse_keys(entries: Iterable[str]) -> dict[str, str]:
    """Return names by digest. Each entry is a key itself or a line of `new_key`. Raises KeyListError.

    A bare key is named after its digest, so that its quota survives other additions to the list.
    """
    names = {}
    for number, text in enumerate(entries, 1):
        entry = text.strip()
        if line := _LINE.fullmatch(entry):
            names[line[2]] = line[1]
        elif len(entry) < MIN_KEY_CHARS:
            raise KeyListError(f"key {number} is shorter than {MIN_KEY_CHARS} characters; make one with `keys new`.")
        else:
            digest = _digest(entry)
            names[digest] = f"key-{digest[:12]}"
    return names


def read_api_keys(file: Path) -> tuple[dict[str, str], dict[str, KeyRight]]:
    """Read a file with one `name:sha256` a line; `#` begins a comment. Raises KeyListError.

    Returns names by digest, and rights by name. Behind the digest there may be `models=demo,flux-*`, which are all that
    this key may use, and `weight=2`, its share where several wait.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyListError(f"{file.name} cannot be read ({type(error).__name__}).") from None
    names: dict[str, str] = {}
    rights: dict[str, KeyRight] = {}
    for number, text in enumerate(lines, 1):
        entry, *more = text.partition("#")[0].strip().split(maxsplit=1)[:2] or [""]
        line = _LINE.fullmatch(entry)
        if line is None and entry:
            raise KeyListError(f"{file.name}:{number}: a line is name:sha256, as `keys new` prints it.")
        if line is None:
            continue
        names[line[2]] = line[1]
        try:
            right = _right(more[0]) if more else KeyRight()
        except ValueError as error:
            raise KeyListError(f"{file.name}:{number}: {error}") from None
        if rights.setdefault(line[1], right) != right:
            raise KeyListError(
                f"{file.name}:{number}: {line[1]} has other rights in a line above; say the same in both."
            )
    if not names:  # an empty file must not open the worker to everybody
        raise KeyListError(f"{file.name} holds no key; add one, or unset the variable.")
    return names, rights


def _right(text: str) -> KeyRight:
    """Read what stands behind a key's digest. Raises ValueError with the sentence about what is wrong."""
    said: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if name not in ("models", "weight") or not equals or name in said:
            raise ValueError(
                f"{word[:40]} is no right of a key; behind the digest stand models=demo,flux-* and weight=2."
            )
        said[name] = value
    patterns = tuple(pattern for pattern in said.get("models", "").split(",") if pattern)
    if "models" in said and not patterns:
        raise ValueError("models= names no model; name some, as models=demo,flux-*, or leave it out for all.")
    weight = float(said["weight"]) if re.fullmatch(r"\d{1,4}(\.\d{1,4})?", said.get("weight", "")) else 0.0
    if "weight" in said and not 0 < weight <= MAX_WEIGHT:
        raise ValueError(f"weight={said['weight'][:40]} is no number above 0 and up to {MAX_WEIGHT:g}.")
    return KeyRight(patterns or None, weight or 1.0)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _find(names: Mapping[str, str], wanted: str) -> str | None:
    """Return the name of digest `wanted`, or None. Compares with every digest in constant time, to leak nothing."""
    owner = None
    for digest, name in names.items():
        if hmac.compare_digest(digest, wanted):
            owner = name
    return owner
