"""A model's files as the libraries want them: links where they are right, and copies of small files where not.

The libraries know files by exact names and read JSON as plain UTF-8 only. No file of a model is ever changed.
"""

import codecs
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile
from worker.core.json_text import parse_bounded
from worker.core.model import SAFETENSORS

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MAX_DEPTH = 2  # a pipeline's folder, and the folders of its components


@contextmanager
def readable(plan: LoadPlan) -> Iterator[LoadPlan]:
    """Return `plan` with paths that the libraries can read, for as long as it is loaded."""
    with ExitStack() as mirrors:
        yield replace(
            plan,
            root=mirrors.enter_context(mirrored(plan.root)),
            base=mirrors.enter_context(mirrored(plan.base)) if plan.base else None,
            config=mirrors.enter_context(mirrored(plan.config)) if plan.config else None,
            parts={name: mirrors.enter_context(mirrored(path)) for name, path in plan.parts.items()},
        )


@contextmanager
def mirrored(path: Path) -> Iterator[Path]:
    """Return `path` itself, or one in a folder of links that lasts as long as the block inside."""
    renamed = _renamed(path)
    if path.is_file() and renamed != path.name:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / renamed
            link.symlink_to(path.resolve())
            yield link
    elif path.is_dir() and not all(_is_right(file) for file in _files(path)):
        with tempfile.TemporaryDirectory() as folder:
            _mirror(path, Path(folder))
            yield Path(folder)
    else:
        yield path


def _mirror(source: Path, target: Path) -> None:
    for file in _files(source):
        link = target / file.relative_to(source).with_name(_renamed(file))
        link.parent.mkdir(parents=True, exist_ok=True)
        if _is_marked(file):
            link.write_text(json.dumps(_read(file)), encoding="utf-8")
        elif not _is_in_the_way(file) and not link.exists():
            link.symlink_to(file.resolve())


def _files(folder: Path, depth: int = 0) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and depth < _MAX_DEPTH and not path.name.startswith("."):
            yield from _files(path, depth + 1)
        elif path.is_file():
            yield path


def _is_right(file: Path) -> bool:
    return _renamed(file) == file.name and not _is_in_the_way(file) and not _is_marked(file)


def _renamed(file: Path) -> str:
    """Return the name that the libraries know a file by: `.sft` is `.safetensors`, `.GGUF` is `.gguf`."""
    suffix = file.suffix.lower()
    if suffix in SAFETENSORS:
        return f"{file.stem}.safetensors"
    return f"{file.stem}{suffix}" if suffix in {".gguf", ".json"} else file.name


def _is_in_the_way(file: Path) -> bool:
    """True for a Mac's `._` file, and for an index of shards beside a whole file, which diffusers would prefer."""
    whole = file.with_name(file.name.removesuffix(".index.json"))
    return file.name.startswith("._") or (file.name.endswith(".index.json") and whole.is_file())


def _is_marked(file: Path) -> bool:
    """True if a JSON file begins with a byte order mark, as Windows' editors write it."""
    if file.suffix.lower() != ".json":
        return False
    with file.open("rb") as opened:
        return opened.read(3).startswith(_MARKS)


def _read(file: Path) -> object:
    try:
        return parse_bounded(file.read_bytes())
    except ValueError:
        raise CorruptFile(
            f"{file.name} of the model is not valid JSON; fetch the model again.", field="model"
        ) from None
