"""Finished files on the volume: <volume>/outputs/<job>/0.png, for every process that reads the same volume."""

import errno
import tempfile
from pathlib import Path

from worker.core.errors import DiskFull, SourceUnavailable

FOLDER = "outputs"
_FULL = {errno.ENOSPC, errno.EDQUOT}


class OutputFolder:
    """The folder for results below a volume. Blocking."""

    def __init__(self, volume: Path) -> None:
        self._volume = volume

    @property
    def host(self) -> str:
        """No server's."""
        return ""

    def check(self) -> None:
        """Accept: the volume is the operator's."""

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Write `body` as `outputs/<key>` and return that path, relative to the volume.

        The file appears whole or not at all, so readers never see half of it. `key` must consist of safe names.
        Raises DiskFull, SourceUnavailable.
        """
        path = self._volume / FOLDER / key
        if not path.resolve().is_relative_to((self._volume / FOLDER).resolve()):
            raise SourceUnavailable("The result's place would lie outside the volume's outputs folder.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
                file.write(body)
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull("The volume is full: the result could not be written to it; free some space.") from None
            raise SourceUnavailable(f"The volume could not be written ({error.strerror}).") from None
        return f"{FOLDER}/{key}"
