"""The operator's own pipeline classes: Python files that only their owner can change; read here, and not run."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from worker.app.settings import Settings, SettingsError
from worker.catalog.classes.custom import class_names
from worker.catalog.classes.signatures import known_pipelines

ROOT = 0
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def custom_pipelines(settings: Settings) -> Mapping[str, Path]:
    """Return the files of CUSTOM_PIPELINES by the classes that they define. Raises SettingsError, with file and line.

    Refused is a folder or a file that another user than this one and root can change, a folder above it included.
    """
    folder = settings.custom_pipelines
    if folder is None:
        return {}
    if not folder.is_dir():
        raise SettingsError(f"CUSTOM_PIPELINES: {folder} is no folder; name one of Python files, or leave it unset.")
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        _check(place, folder)
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.py")):
        _check(path, folder)
        for name, line in _classes(path):
            if name in known_pipelines():
                raise _wrong(path, line, f"{name} is a class of diffusers; name yours otherwise.")
            if name in found:
                raise _wrong(path, line, f"{name} is defined in {found[name].name}, too; rename one of the two.")
            found[name] = path
    if not found:
        raise SettingsError(
            f"CUSTOM_PIPELINES: {folder} defines no class whose name holds Pipeline; add one, or leave it unset."
        )
    return found


def _check(path: Path, folder: Path) -> None:
    """Raise SettingsError for what others could change. In a sticky folder, as /tmp is, nobody renames what is not
    theirs.
    """
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        raise SettingsError(f"CUSTOM_PIPELINES: {path.name} is a link; put the file itself there.")
    is_above = path != folder and path in folder.parents
    if state.st_uid not in (ROOT, os.getuid()):
        raise SettingsError(f"CUSTOM_PIPELINES: {path} belongs to another user; it must be this one's, or root's.")
    if state.st_mode & _OTHERS and not (is_above and state.st_mode & stat.S_ISVTX):
        raise SettingsError(f"CUSTOM_PIPELINES: {path} can be changed by other users; run chmod go-w on it.")


def _classes(path: Path) -> Iterator[tuple[str, int]]:
    try:
        yield from class_names(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise _wrong(path, error.lineno or 1, f"is not valid Python ({error.msg}).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(path, 1, f"cannot be read ({type(error).__name__}).") from None


def _wrong(path: Path, line: int, sentence: str) -> SettingsError:
    return SettingsError(f"CUSTOM_PIPELINES: {path.name}:{line}: {sentence}")
