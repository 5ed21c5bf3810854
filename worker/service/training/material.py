"""What is sent to learn from, laid on the volume: a folder or a ZIP file, as the room of training reads them."""

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from worker.core.errors import InvalidImage, InvalidRequest
from worker.core.fingerprint import fingerprint
from worker.core.training import SentExample, TrainingData
from worker.media.decoding import MAX_BYTES
from worker.media.images import is_url, read_bytes
from worker.media.kinds import kind_of
from worker.service.accepting.media_reader import Fetch
from worker.service.limits.pools import Pools

FOLDER = "datasets"
MAX_ARCHIVE_BYTES = 2**30
MAX_DATA_BYTES = 4 * 2**30
_AT_ONCE = 4
_SUFFIXES = {"JPEG": ".jpg", "WebP": ".webp", "AVIF": ".avif", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
FetchDataset = Callable[[str, Path], None]


@dataclass(frozen=True, slots=True)
class Material:
    """The ways of images to a training. `fetch` opens a caller's links; `fetch_archive` has more time for each.

    `fetch_dataset` puts the files of a public dataset of the Hub into a folder.
    """

    volume: Path
    pools: Pools
    fetch: Fetch
    fetch_archive: Fetch
    fetch_dataset: FetchDataset

    async def laid(self, data: TrainingData, folder: Path) -> Path:
        """Return the folder or ZIP file to learn from; what is sent or fetched is put below `folder`.

        What is there already stays: a training that goes on needs no link that still works. Raises InvalidRequest.
        """
        if data.folder is not None:
            return self._own(data.folder)
        target, source = folder / ("data.zip" if data.archive is not None else "data"), folder / "data.source"
        digest = await self.pools.checks.run(fingerprint, data.model_dump())
        if source.exists() and source.read_text() != digest:
            raise InvalidRequest(
                f"name holds another training: {folder.name} was begun with other data; choose another name.",
                field="name",
            )
        if target.exists():
            return target
        partial_ = folder / f".{target.name}.partial"
        shutil.rmtree(partial_, ignore_errors=True)
        partial_.parent.mkdir(parents=True, exist_ok=True)
        if data.archive is not None:
            await self._archive(data.archive, partial_)
        else:
            partial_.mkdir()
            if data.dataset is not None:
                await self.pools.downloads.run(self.fetch_dataset, data.dataset, partial_)
            else:
                await self._images(data.images, partial_)
        source.write_text(digest)
        partial_.rename(target)
        return target

    def clear(self, folder: Path) -> None:
        """Delete what was sent or fetched for the training in `folder`, and what was made of it. Blocking."""
        for name in ("data", "lessons", "class"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "data.zip").unlink(missing_ok=True)

    def _own(self, name: str) -> Path:
        root = (self.volume / FOLDER).resolve()
        try:
            path = (root / name.strip("/")).resolve()
            is_there = path.exists()
        except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, a NUL
            is_there = False
        if not is_there or not path.is_relative_to(root):
            raise InvalidRequest(
                f"data: there is no volume:{name[:80]}; put a folder or a ZIP file into {FOLDER} on the volume.",
                field="data",
            )
        return path

    async def _archive(self, text: str, target: Path) -> None:
        read = partial(read_bytes, text, self.fetch_archive, "data", MAX_ARCHIVE_BYTES)
        try:
            body = await self.pools.images.run(read, place=_host(text))
        except InvalidImage as error:
            raise InvalidRequest(f"data cannot be read as a ZIP file: {_reason(error)}", field="data") from None
        if not body.startswith(b"PK"):
            raise InvalidRequest(
                f"data is {kind_of(body) or 'no ZIP file'}; send a ZIP file as base64 or an https URL, or a list of "
                "images.",
                field="data",
            )
        await self.pools.own.run(target.write_bytes, body)

    async def _image(self, text: str, name: str) -> bytes:
        read = partial(read_bytes, text, self.fetch, "data", MAX_BYTES)
        try:
            return await self.pools.images.run(read, place=_host(text))
        except InvalidImage as error:
            raise InvalidRequest(f"{name} cannot be had: {_reason(error)}", field="data") from None

    async def _images(self, examples: tuple[SentExample, ...], folder: Path) -> None:
        places, total = asyncio.Semaphore(_AT_ONCE), 0

        async def one(index: int, example: SentExample) -> str:
            nonlocal total
            name = ""
            async with places:
                parts = (
                    (example.image, "", example.caption),
                    (example.mask, ".mask", ""),
                    (example.source, ".source", ""),
                )
                for text, ending, caption in parts:
                    if text is None:
                        continue
                    body = await self._image(text, f"data[{index}]{ending}")
                    total += len(body)
                    if total > MAX_DATA_BYTES:
                        raise InvalidRequest(
                            f"data brings over {MAX_DATA_BYTES >> 30} GB; send fewer or smaller images.", field="data"
                        )
                    path = folder / f"{index:05d}{ending}{_SUFFIXES.get(kind_of(body) or '', '.png')}"
                    await self.pools.own.run(_write, path, body, caption)
                    name = name or path.name
            return name

        tasks = [asyncio.ensure_future(one(*item)) for item in enumerate(examples)]
        try:
            names = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        await self.pools.own.run(_list, folder, [*zip(names, examples, strict=True)])


def _write(path: Path, body: bytes, caption: str) -> None:
    path.write_bytes(body)
    if caption:
        path.with_suffix(".txt").write_text(caption)


def _list(folder: Path, sent: Sequence[tuple[str, SentExample]]) -> None:
    """Write how often images count, where some count more than once."""
    rows = [{"file_name": name, "repeats": each.repeats} for name, each in sent if each.repeats > 1]
    if rows:
        (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _host(text: str) -> str:
    try:
        return urlsplit(text.strip()[:2_048]).netloc.rpartition("@")[2].lower() if is_url(text) else ""
    except ValueError:  # the client refuses it
        return ""


def _reason(error: InvalidImage) -> str:
    return error.message.removeprefix("The image's URL cannot be fetched: ").removeprefix("data ")
