"""What is typed as DATA of a training: a folder or a ZIP file of this machine, or what a job takes, laid beside it."""

import asyncio
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import JsonValue

from worker.app.cli.session import settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.interrupt import raised_interrupts
from worker.app.training import material_of
from worker.core.training import TrainingData
from worker.core.turn import begun
from worker.service.limits.pools import Pools
from worker.wire.training import decode_data

if TYPE_CHECKING:
    from worker.service.training.material import Material

_ELSEWHERE = re.compile(r"(hf|volume|https?):", re.I)
_URL = re.compile(r"https?://\S+", re.I)
_MAX_BYTES = 16 * 2**20


def typed_data(text: str) -> Path | TrainingData:
    """Return the folder or ZIP file that is meant, or what has to be fetched first. Raises Failure, WorkerError."""
    if _ELSEWHERE.match(text):
        return decode_data(text)
    path = Path(text).expanduser().resolve()
    if path.is_file() and not zipfile.is_zipfile(path) and path.suffix.lower() != ".zip":
        return decode_data(_listed(path))
    return path


def name_of(text: str) -> str:
    """Return the name of a training, as its data is called."""
    if _ELSEWHERE.match(text):
        scheme, _, rest = text.partition(":")
        path = unquote(urlsplit(text).path) if scheme.lower().startswith("http") else rest.partition("@")[0]
        stem = Path(path).stem
    else:
        stem = Path(text).expanduser().resolve().stem
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "trained"


def laid_data(data: Path | TrainingData, folder: Path, terminal: Terminal) -> Path:
    """Return the folder or ZIP file to learn from; what is elsewhere is fetched into `folder`. Raises WorkerError."""
    if isinstance(data, Path):
        return data
    material = material_of(settings_of(terminal), Pools())
    try:
        with raised_interrupts():
            return asyncio.run(_laid(material, data, folder))
    except KeyboardInterrupt:
        raise Failure("stopped while DATA was fetched; the same command begins with that again.") from None


async def _laid(material: "Material", data: TrainingData, folder: Path) -> Path:
    with begun(None) as turn:
        try:
            return await material.laid(data, folder)
        finally:
            turn.stop.cancel()  # what is fetched in a thread ends, too


def _listed(path: Path) -> list[JsonValue]:
    """Read a list of images: a URL and its caption in each line, or JSON with what a request says of an image."""
    if path.stat().st_size > _MAX_BYTES:
        raise Failure(f"DATA: {path.name} is neither a ZIP file nor a list of URLs of at most {_MAX_BYTES >> 20} MB.")
    items: list[JsonValue] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        try:
            items.append(json.loads(words) if words.startswith("{") else _entry(words))
        except (ValueError, RecursionError):
            raise Failure(
                f"DATA: line {number} of {path.name} must be an https URL, with a caption after a space if there is "
                'one, or JSON like {"image": "https://…", "caption": "a cat"}.'
            ) from None
    return items


def _entry(line: str) -> JsonValue:
    url, _, caption = line.partition(" ")
    if not _URL.fullmatch(url.strip()):
        raise ValueError
    return {"image": url.strip(), "caption": caption.strip()}
