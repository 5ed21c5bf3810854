"""What lies at a place where a file belongs: a regular file, or what has to be cleared away.

A folder, a socket, a pipe or a link to nothing in a file's place is damage like any other. Opening a pipe would wait
for ever, and a rename onto a folder fails each time: so nothing is opened or replaced before it was looked at.
"""

import contextlib
import os
import shutil
import stat
import uuid
from pathlib import Path


def state_of(path: Path) -> os.stat_result | None:
    """Return the state of the regular file at `path`, through links; None if there is anything else, or nothing."""
    try:
        state = path.stat()
    except (OSError, ValueError):  # nothing, a loop of links, no permission
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def size_of(path: Path) -> int:
    """Return the bytes of the regular file at `path`; 0 if there is none."""
    state = state_of(path)
    return state.st_size if state is not None else 0


def read_small(path: Path) -> str | None:
    """Return the text of a small file of the cache's own; None where there is no readable one."""
    if state_of(path) is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def clear_away(path: Path) -> None:
    """Remove what lies at `path`, a folder with all that is in it. Raises OSError if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):  # the second is POSIX's word for a folder
        if not path.is_dir():
            raise
        # Out of the way first: the place is free even if something in the folder cannot be removed.
        aside = path.with_name(f".{uuid.uuid4().hex}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def make_way(path: Path) -> None:
    """Remove what lies at `path`, unless it is a regular file or nothing."""
    if os.path.lexists(path) and state_of(path) is None:
        clear_away(path)


def make_folder(folder: Path, below: Path) -> None:
    """Make `folder` and those above it, as far as `below`, where something else lies in the place of one of them."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return
    for parent in [*reversed(folder.parents), folder]:
        if parent.is_relative_to(below) and os.path.lexists(parent) and not parent.is_dir():
            clear_away(parent)
    folder.mkdir(parents=True, exist_ok=True)
