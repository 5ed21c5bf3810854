"""A new file or folder that is there whole or not at all, and never in the place of another."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.core.errors import UnsupportedModel


def refuse_taken(target: Path) -> None:
    """Refuse a place where something is: nothing is ever written over. Raises UnsupportedModel."""
    if target.exists() or target.is_symlink():
        raise UnsupportedModel(f"{target} is there already; name another place.", field="output")


@contextmanager
def put_in_place(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to. At the end it becomes `target`; after a failure nothing is left.

    Raises UnsupportedModel where something came to `target` meanwhile.
    """
    part = target.with_name(f".{target.name}.part{target.suffix}")
    try:
        yield part
        refuse_taken(target)
        part.replace(target)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)


def bytes_at(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
