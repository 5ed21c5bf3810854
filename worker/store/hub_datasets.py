"""Public datasets of the Hub, folders of images or Parquet files: fetched without any token, as a caller names them."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import quote

from worker.core.errors import DiskFull, InvalidRequest, SourceUnavailable
from worker.core.json_text import JsonLimits, JsonTooLarge, parse_bounded
from worker.core.turn import current
from worker.net.client import Client, Oversize, Response
from worker.store.parquet_images import ParquetImages, check_installed

MAX_FILES = 20_000
MAX_BYTES = 4 * 2**30
_MAX_FILE_BYTES = 64 * 2**20
_MAX_LISTING_BYTES = 16 * 2**20
_LIMITS = JsonLimits(values=500_000, texts=1_000_000, depth=32)
_TIMEOUT_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/\w[\w.-]{0,95}(@\w[\w./+-]{0,127})?", re.ASCII)
_PARQUET = ".parquet"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_WANTED = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".txt", ".caption", ".jsonl")
_IMAGES = _WANTED[:9]


class HubDatasets:
    """Fetches datasets from `endpoint`. Blocking; safe to use from several threads."""

    def __init__(self, endpoint: str, *, offline: bool = False) -> None:
        self._endpoint, self._offline = endpoint.rstrip("/"), offline
        self._client = Client({endpoint: None})

    def fetch(self, name: str, folder: Path) -> None:
        """Put the images and captions of the dataset `name` into `folder`. Raises InvalidRequest, SourceUnavailable."""
        if not _NAME.fullmatch(name) or ".." in name:
            raise InvalidRequest(
                "data is no dataset of the Hub; send hf:org/name, or hf:org/name@revision.", field="data"
            )
        if self._offline:
            raise SourceUnavailable("data: this worker is offline; send the images, or unset OFFLINE.", field="data")
        repo, _, revision = name.partition("@")
        root = f"{self._endpoint}/datasets/{repo}/resolve/{quote(revision or 'main', safe='')}"
        paths = self._listed(repo, revision or "main")
        try:
            if paths[0].lower().endswith(_PARQUET):
                self._unpack(root, repo, paths, folder)
            else:
                self._copy(root, repo, paths, folder)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskFull(
                f"The volume ran full while {repo} was fetched; use a larger one, or remove models with "
                "`python -m worker cache`.",
                field="data",
            ) from None

    def _copy(self, root: str, repo: str, paths: Sequence[str], folder: Path) -> None:
        """Fetch images and captions as they are."""
        left = MAX_BYTES
        for path in paths:
            current().stop.check()
            body = self._read(f"{root}/{quote(path)}", min(_MAX_FILE_BYTES, left), repo)
            left -= len(body)
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(body)

    def _unpack(self, root: str, repo: str, paths: Sequence[str], folder: Path) -> None:
        """Fetch Parquet files one after the other, and put their images into `folder`."""
        check_installed(repo)
        images, left = ParquetImages(repo, folder, MAX_BYTES, current().stop.check), MAX_BYTES
        with TemporaryDirectory(dir=folder, prefix=".parquet-") as place:
            for path in paths:
                file = Path(place) / "rows.parquet"
                left -= self._download(f"{root}/{quote(path)}", file, left, repo)
                images.unpack(file)
        images.done()

    def _download(self, url: str, file: Path, limit: int, repo: str) -> int:
        """Write a file of at most `limit` bytes to disk as it arrives, and return how many they are."""
        size = 0
        with self._answer(url, repo) as response, file.open("wb") as target:
            while block := response.read():
                current().stop.check()
                size += len(block)
                if size > limit:
                    raise Oversize
                target.write(block)
        return size

    def _listed(self, repo: str, revision: str) -> list[str]:
        url = f"{self._endpoint}/api/datasets/{quote(repo)}/revision/{quote(revision, safe='')}"
        try:
            info = parse_bounded(self._read(url, _MAX_LISTING_BYTES, repo), _LIMITS)
        except (ValueError, JsonTooLarge):
            info = None
        siblings = info.get("siblings") if isinstance(info, dict) else None
        if not isinstance(siblings, list):
            raise SourceUnavailable(
                f"data: the Hub's answer about {repo} is no description of a dataset.", field="data"
            )
        names = [name for each in siblings if isinstance(each, dict) and isinstance(name := each.get("rfilename"), str)]
        wanted = _wanted([name for name in names if _is_safe(name)])
        if not wanted:
            raise InvalidRequest(
                f"data: {repo} has no image files, and no Parquet files; send the images, or a ZIP file.", field="data"
            )
        if len(wanted) > MAX_FILES:
            raise InvalidRequest(
                f"data: {repo} has {len(wanted):,} files; at most {MAX_FILES:,} are fetched.", field="data"
            )
        return wanted

    def _read(self, url: str, limit: int, repo: str) -> bytes:
        with self._answer(url, repo) as response:
            return response.read_all(limit)

    @contextmanager
    def _answer(self, url: str, repo: str) -> Iterator[Response]:
        """Yield the answer to read; what is raised inside is told as the dataset's or the Hub's fault."""
        try:
            with self._client.get(url, timeout_s=_TIMEOUT_S) as response:
                if response.status in {401, 403, 404, 410}:
                    raise InvalidRequest(
                        f"data: {repo} is no public dataset of the Hub; check the spelling, or send the images.",
                        field="data",
                    )
                if response.status != 200:
                    raise SourceUnavailable(f"data: the Hub answered {response.status}; send it again.", field="data")
                yield response
        except Oversize:
            raise InvalidRequest(
                f"data: {repo} has a file over {_MAX_FILE_BYTES >> 20} MB, or is over {MAX_BYTES >> 30} GB in all.",
                field="data",
            ) from None
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise SourceUnavailable("data: the Hub does not answer; send it again in a minute.", field="data") from None


def _wanted(names: Sequence[str]) -> list[str]:
    """Return the images and captions of a dataset; where it has no images, its Parquet files.

    Of these, those of its split for training, where one is named so.
    """
    found = [name for name in names if name.lower().endswith(_WANTED)]
    if any(name.lower().endswith(_IMAGES) for name in found):
        return found
    files = sorted(name for name in names if name.lower().endswith(_PARQUET))
    return [name for name in files if "train" in PurePosixPath(name).name.lower()] or files


def _is_safe(name: str) -> bool:
    """True for a path that stays below its folder."""
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name
