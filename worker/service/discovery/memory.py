"""Answers to wishes, kept on the volume for an hour: the next one who asks the same costs the sources nothing."""

import hashlib
import logging
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter

from worker.core.discovery import DiscoverRequest, Discovery
from worker.store.entries import write_atomically

KEPT_S = 3_600.0
_MAX_FILES = 200
_LOG = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def _answers() -> TypeAdapter[Discovery]:
    """Return what reads and writes answers; made at its first use, since it takes as long as many imports."""
    return TypeAdapter(Discovery)


class Memory:
    """Keeps answers in `folder`, under digests: no word of a wish stands in a file's name. Blocking.

    A failing disk is logged and keeps nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, wish: DiscoverRequest, place: str) -> Discovery | None:
        """Return the answer to the same wish for the same device, with its age; None for one that is not there."""
        path = self._path(wish, place)
        try:
            age = max(0.0, time.time() - path.stat().st_mtime)
            return replace(_answers().validate_json(path.read_bytes()), age_s=age) if age < KEPT_S else None
        except (OSError, ValueError):  # not there, or written by another version
            return None

    def keep(self, wish: DiscoverRequest, place: str, answer: Discovery) -> None:
        """Keep an answer, and forget the oldest of too many."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(wish, place), _answers().dump_json(answer).decode())
            old = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-_MAX_FILES]
            for path in old:
                path.unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("answers of discovery are not kept: %s", type(error).__name__)

    def _path(self, wish: DiscoverRequest, place: str) -> Path:
        digest = hashlib.sha256(f"{place}\n{wish.model_dump_json()}".encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"
