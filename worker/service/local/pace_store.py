"""What was learnt of calls, on the volume: for a model's files, a device and the libraries, shared by workers.

A file holds all kinds of calls of one such set, and for each number of images the seconds for one. It is written whole
and published by a rename, so that workers need no lock; where two write at once one may lose what the other has learnt
meanwhile, and learns it again. No words, no images, and no model's name.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.service.local.pace import LAST, MEMORY, Pace

_LOG = logging.getLogger(__name__)
VERSION = 1
_MAX_BYTES = 2**20
_KEY_LETTERS = frozenset("0123456789abcdef")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    work: str = Field(max_length=512)
    pixels: int = Field(gt=0)
    seconds: dict[int, list[float]]

    @property
    def pace(self) -> Pace:
        """The same as the batches know it, without numbers that nothing can be learnt from."""
        usable = {
            images: tuple(value for value in each if 0 < value < float("inf"))[-LAST:]
            for images, each in self.seconds.items()
            if images > 0
        }
        return Pace(self.work, self.pixels, {images: each for images, each in usable.items() if each})


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int
    paces: list[_Entry]


class PaceStore:
    """The paces in `folder`. Its methods block, and may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exchange(self, key: str, own: Sequence[Pace]) -> tuple[Pace, ...]:
        """Return what all workers know of `key`, this one's `own` first, and write that down where it is news."""
        if not key or not _KEY_LETTERS.issuperset(key):
            return tuple(own)
        known = {(pace.work, pace.pixels): pace for pace in self._read(key)}
        merged = dict(known)
        for pace in own:
            theirs = known.get((pace.work, pace.pixels))
            merged.pop((pace.work, pace.pixels), None)  # the last used come last
            merged[pace.work, pace.pixels] = (
                pace if theirs is None else Pace(pace.work, pace.pixels, {**theirs.seconds, **pace.seconds})
            )
        paces = tuple(merged.values())[-MEMORY:]
        if merged != known:
            self._write(key, paces)
        return paces

    def _read(self, key: str) -> list[Pace]:
        path = self._folder / f"{key}.json"
        try:
            if path.stat().st_size > _MAX_BYTES:
                return []
            file = _File.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):  # none yet, or none that can be used: then it is learnt anew
            return []
        return [entry.pace for entry in file.paces] if file.version == VERSION else []

    def _write(self, key: str, paces: Sequence[Pace]) -> None:
        entries = [{"work": pace.work, "pixels": pace.pixels, "seconds": dict(pace.seconds)} for pace in paces]
        path = self._folder / f"{key}.json"
        beside = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"version": VERSION, "paces": entries}, indent=1))
            beside.replace(path)
        except OSError as error:  # a volume that is full or read-only: this worker knows it all the same
            _LOG.warning("what was learnt of calls cannot be written: %s", error.strerror)
            with suppress(OSError):
                beside.unlink()
