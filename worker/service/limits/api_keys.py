"""Who a caller is: API keys, known by their SHA-256 only, each with a name."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "uimw_"
MIN_KEY_CHARS = 16
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeyListError(ValueError):
    """A list of keys that cannot be used. The message never holds a key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sends a request. Without keys nobody has a name, and everybody may do everything."""

    name: str | None = None
    admin: bool = True


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys that open this worker: the SHA-256 of each, as hex, with its owner's name.

    Without any `callers` the worker is open to everybody. With `admins`, only these may do what is the operator's.
    """

    callers: Mapping[str, str] = field(default_factory=dict)
    admins: Mapping[str, str] = field(default_factory=dict)

    def identify(self, key: str | None) -> Caller | None:
        """Who sends this key; None for nobody who is let in."""
        sent = _digest(key) if key is not None else ""
        if (name := _find(self.admins, sent)) is not None:
            return Caller(name, admin=True)
        if (name := _find(self.callers, sent)) is not None:
            return Caller(name, admin=not self.admins)
        # Clients that insist on a key send any: of an open worker they may.
        return None if self.callers else Caller(None, admin=not self.admins)


def new_key(name: str) -> tuple[str, str]:
    """A new key of 256 random bits, and the line by which a worker knows it. Raises KeyListError for a bad name."""
    if not _NAME.fullmatch(name):
        raise KeyListError("A key's name is 1 to 64 letters, digits, dots, dashes or underscores.")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{_digest(key)}"


def parse_keys(entries: Iterable[str]) -> dict[str, str]:
    """Names by digest, of entries that are a key itself or a line of `new_key`. Raises KeyListError.

    A bare key is named after its digest, so that its quota survives whatever else is added to the list.
    """
    found = {}
    for number, text in enumerate(entries, 1):
        entry = text.strip()
        if line := _LINE.fullmatch(entry):
            found[line[2]] = line[1]
        elif len(entry) < MIN_KEY_CHARS:
            raise KeyListError(f"key {number} is shorter than {MIN_KEY_CHARS} characters; make one with `keys new`.")
        else:
            digest = _digest(entry)
            found[digest] = f"key-{digest[:12]}"
    return found


def read_api_keys(file: Path) -> dict[str, str]:
    """Names by digest, of a file with one `name:sha256` a line; `#` begins a comment. Raises KeyListError."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyListError(f"{file.name} cannot be read ({type(error).__name__}).") from None
    found = {}
    for number, text in enumerate(lines, 1):
        entry = text.partition("#")[0].strip()
        line = _LINE.fullmatch(entry)
        if line is not None:
            found[line[2]] = line[1]
        elif entry:
            raise KeyListError(f"{file.name}:{number}: a line is name:sha256, as `keys new` prints it.")
    if not found:  # an empty file must not open the worker to everybody
        raise KeyListError(f"{file.name} holds no key; add one, or unset the variable.")
    return found


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _find(known: Mapping[str, str], sent: str) -> str | None:
    """Compare with every digest, each in constant time: how long it takes says nothing of what is known."""
    found = None
    for digest, name in known.items():
        if hmac.compare_digest(digest, sent):
            found = name
    return found
