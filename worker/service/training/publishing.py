"""What came of a training, where others find it: the adapter by name, and the files in the operator's bucket."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worker.core.errors import DiskFull, InvalidRequest, SourceUnavailable
from worker.core.training import TrainedField, TrainedFile
from worker.service.limits.pools import Pools
from worker.store.tuned import TunedModels

FOLDER = "trained"
_TYPES = {".png": "image/png", ".md": "text/markdown", ".json": "application/json", ".txt": "text/plain"}


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
    tuned: TunedModels
    bucket: Bucket | None = None

    def check(self, name: str, field: TrainedField, folder: Path) -> None:
        """Raise InvalidRequest if something has this name already that no training in `folder` made."""
        if self.place(name, field).exists() and not (folder / "training.json").exists():
            what = "a model" if field == "model" else "an adapter"
            raise InvalidRequest(
                f"name {name} is that of {what} which is on the volume already; choose another name.", field="name"
            )

    def publish(self, name: str, field: TrainedField, file: Path, base: str) -> None:
        """Let requests find what was trained from `base` in `field` under `name` from now on. Blocking.

        It appears whole or not at all.
        """
        if field == "model":
            self.tuned.put(name, file, base)
            return
        place = self.place(name, field)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{name}.partial")
        shutil.copyfile(file, partial)
        partial.replace(place)

    async def delivered(self, name: str, files: Sequence[Path]) -> tuple[tuple[TrainedFile, ...], tuple[str, ...]]:
        """Return the files as callers get them, and a sentence if the bucket did not take them."""
        folder = self.volume / FOLDER / name
        files = [each for file in files for each in (sorted(file.rglob("*")) if file.is_dir() else [file])]
        files = [each for each in files if each.is_file()]
        paths = [file.relative_to(self.volume).as_posix() for file in files]
        if self.bucket is None:
            return tuple(map(TrainedFile, paths)), ()
        urls, notes = [], []
        for file in files:
            try:
                urls.append(await self.pools.uploads.run(self._put, name, file, folder, place=self.bucket.host))
            except (SourceUnavailable, DiskFull) as error:
                urls.append(None)
                notes = [f"{error.message} The files are on the volume."]
        return tuple(TrainedFile(*each) for each in zip(paths, urls, strict=True)), tuple(notes)

    def _put(self, name: str, file: Path, folder: Path) -> str | None:
        if self.bucket is None:
            return None
        # A model's parts keep their places in it, and all else is found by its own name.
        below = file.relative_to(folder).parts[2:] if "model" in file.relative_to(folder).parts[:1] else (file.name,)
        kind = _TYPES.get(file.suffix, "application/octet-stream")
        return self.bucket.put(f"trained/{name}/{'/'.join(below)}", file.read_bytes(), kind)

    def place(self, name: str, field: TrainedField) -> Path:
        """Return where requests find what was trained by this name."""
        if field == "model":
            return self.tuned.place(name)
        return self.volume / field / f"{name}.safetensors"
