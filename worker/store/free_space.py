"""How much room the disk of a folder has, for those who may not wait for a network mount that hangs."""

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_FRESH_S = 5.0  # a reading is taken anew after this long
_OLD_S = 120.0  # and is none any more after this long: the disk does not answer


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a disk."""

    free: int
    total: int


def space_of(folder: Path) -> Space | None:
    """Return the room of the disk that `folder` is or will be on; None where that cannot be told. Blocking."""
    for place in (folder, *folder.absolute().parents):
        try:
            usage = shutil.disk_usage(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return Space(usage.free, usage.total)
    return None


class DiskGauge:
    """The room of a folder's disk, read beside whoever asks: an answer is the last reading, seconds old."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reading = threading.Lock()
        self._read()

    def space(self) -> Space | None:
        """Return the last reading at once; None where there is none, or none of the last minutes."""
        age_s = time.monotonic() - self._at
        if age_s > _FRESH_S and self._reading.acquire(blocking=False):
            threading.Thread(target=self._read_once, name="disk gauge", daemon=True).start()
        return self._last if age_s <= _OLD_S else None

    def _read_once(self) -> None:
        try:
            self._read()
        finally:
            self._reading.release()

    def _read(self) -> None:
        self._last = space_of(self._folder)
        self._at = time.monotonic()
