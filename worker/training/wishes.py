"""Wishes of who watches a training: a file in its folder, so that any process of any worker of the volume may write it.

It is looked for at most once a second, and fulfilled between two steps.
"""

import time
from pathlib import Path

from worker.core.training import WISH_FILE

_LOOK_S = 1.0


class Wishes:
    """The wishes of one stretch of a training; one for an earlier stretch, which ended before it, is forgotten."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / WISH_FILE
        self._looked_at = -_LOOK_S
        self._file.unlink(missing_ok=True)

    def is_one(self) -> bool:
        """True if there is a wish, as far as was looked within the last second."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return False
        self._looked_at = now
        return self._file.exists()

    def take(self) -> str | None:
        """Return the wish, and forget it."""
        try:
            wish = self._file.read_text()
        except FileNotFoundError:
            return None
        self._file.unlink(missing_ok=True)
        return wish
