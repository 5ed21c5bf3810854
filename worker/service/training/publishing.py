"""What came of a training, where others find it: the adapter by name, and the files in the operator's bucket."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.core.errors import DiskFull, InvalidRequest, SourceUnavailable
from worker.core.training import AdapterField, TrainedFile
from worker.service.limits.pools import Pools

_TYPES = {".png": "image/png", ".md": "text/markdown", ".safetensors": "application/octet-stream"}


class Bucket(Protocol):
    """The operator's bucket."""

    @property
    def host(self) -> str:
        """The server that takes the files."""
        ...

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Store `body` and return a URL that reads it."""
        ...


@dataclass(frozen=True, slots=True)
class Publishing:
    """The volume's folders of adapters, whose files requests name without their suffix; a bucket where there is one."""

    volume: Path
    pools: Pools
    bucket: Bucket | None = None

    def check(self, name: str, field: AdapterField, folder: Path) -> None:
        """Raise InvalidRequest if an adapter has this name already that no training in `folder` made."""
        if self.place(name, field).exists() and not (folder / "training.json").exists():
            raise InvalidRequest(
                f"name {name} is that of an adapter which is on the volume already; choose another name.", field="name"
            )

    def publish(self, name: str, field: AdapterField, file: Path) -> None:
        """Let requests find `file` in `field` under `name` from now on; it appears whole or not at all. Blocking."""
        place = self.place(name, field)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{name}.partial")
        shutil.copyfile(file, partial)
        partial.replace(place)

    async def delivered(self, name: str, files: Sequence[Path]) -> tuple[tuple[TrainedFile, ...], tuple[str, ...]]:
        """Return the files as callers get them, and a sentence if the bucket did not take them."""
        paths = [file.relative_to(self.volume).as_posix() for file in files]
        if self.bucket is None:
            return tuple(map(TrainedFile, paths)), ()
        urls, notes = [], []
        for file in files:
            try:
                urls.append(await self.pools.uploads.run(self._put, name, file, place=self.bucket.host))
            except (SourceUnavailable, DiskFull) as error:
                urls.append(None)
                notes = [f"{error.message} The files are on the volume."]
        return tuple(TrainedFile(*each) for each in zip(paths, urls, strict=True)), tuple(notes)

    def _put(self, name: str, file: Path) -> str | None:
        bucket = self.bucket
        return bucket.put(f"trained/{name}/{file.name}", file.read_bytes(), _TYPES[file.suffix]) if bucket else None

    def place(self, name: str, field: AdapterField) -> Path:
        """Return where requests find an adapter by this name."""
        return self.volume / field / f"{name}.safetensors"
