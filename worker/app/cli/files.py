"""Files of this machine in what an operator types: images are read, models and adapters are trusted where they lie.

Only a command's own process does this; what arrives at a server's doors never names a path outside the operator's
folders.
"""

import base64
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from worker.app.cli.terminal import Failure
from worker.catalog.interface.adapters import ADAPTERS
from worker.store.selection import is_weights
from worker.wire.media_objects import names_media
from worker.wire.request import ALIASES

# The fields that name a model or an adapter, or hold objects that do.
_REFERENCES = frozenset({"model", "refiner", "upscale", *ADAPTERS})


class TypedFiles:
    """Puts files in place of the paths that were typed, and remembers as `roots` what the command may read."""

    def __init__(self, is_registered: Callable[[str], bool]) -> None:
        self._is_registered = is_registered
        self.roots: list[Path] = []

    def placed(self, name: str, value: JsonValue) -> JsonValue:
        """Return the value of the field `name`, with contents for images and `file:` for models. Raises Failure."""
        if isinstance(value, list):
            return [self.placed(name, item) for item in value]
        if isinstance(value, dict):
            return {key: self.placed(key, item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        if names_media(name):
            return media(value) if exists(Path(value)) else value
        return self.reference(value) if ALIASES.get(name, name) in _REFERENCES else value

    def reference(self, text: str) -> str:
        """Return the reference of a model or an adapter that was typed: a path becomes one. Raises Failure."""
        is_path = text.startswith(("/", "./", "../", "~")) or text in (".", "..")
        path = Path(text.removeprefix("file:").partition("#")[0] if text.startswith("file:") else text).expanduser()
        if text.startswith("file:"):
            self.roots.append(path.absolute())
            return text
        there = exists(path)
        if not there and (is_path or ("/" not in text and ":" not in text and is_weights(text))):
            raise Failure(f"There is no file or folder {text}; check the path.")
        if not there or (not is_path and self._is_registered(text)):
            return text
        path = path.absolute()
        if "#" in str(path):
            raise Failure(f"{text}: a # in a path would begin the name of a file in it; rename it.")
        self.roots.append(path)
        return f"file:{path}"


def media(text: str, option: str = "") -> str:
    """Return an image or a video that was typed: a file's contents as base64, or a URL as it is. Raises Failure."""
    if text.lower().startswith(("http://", "https://", "data:")):
        return text
    path = Path(text).expanduser()
    before = f"{option}: " if option else ""
    if not exists(path) or not path.is_file():
        fault = "is no file" if exists(path) else "does not exist"
        raise Failure(f"{before}{text} {fault}; name a file, or an https URL.")
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise Failure(f"{before}{text} cannot be read ({error.strerror}); check the file.") from None


def exists(path: Path) -> bool:
    """True if there is anything at `path`; also asked of texts that can be no path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, as base64 is; a NUL
        return False
