"""Where a command's images go: into a folder under new names, or into the file that was named."""

import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from worker.app.cli.terminal import Failure, Terminal
from worker.core.answer import Answer
from worker.core.request import Format, format_named
from worker.transport.local_run import save_files

_FORMATS: Mapping[str, Format] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".gif": "gif",
    ".mp4": "mp4",
}
# Endings that can only be meant as a file's.
_OTHERS = frozenset({".avif", ".bmp", ".heic", ".jxl", ".mkv", ".mov", ".tif", ".tiff", ".webm"})
_OPENERS = {"darwin": "open", "win32": "explorer"}


@dataclass(frozen=True, slots=True)
class Destination:
    """A folder, or the file in it that is to be written."""

    folder: Path
    name: str | None = None

    @classmethod
    def named(cls, text: str, fields: MutableMapping[str, JsonValue], typed: MutableMapping[str, str]) -> "Destination":
        """Read --output, and ask in `fields` for the format that its ending names. Raises Failure."""
        path = Path(text).expanduser()
        suffix = path.suffix.lower()
        is_folder = path.is_dir() or text.endswith(("/", os.sep)) or suffix not in {*_FORMATS, *_OTHERS}
        if not is_folder and suffix in _OTHERS:
            raise Failure(f"--output {text}: {suffix} is not written; end it in {', '.join(_FORMATS)}.")
        if is_folder:
            return cls(path)
        output = fields.get("output", {})
        if isinstance(output, dict):  # anything else is refused with the request
            wanted = output.get("format")
            if wanted is not None and format_named(wanted) != _FORMATS[suffix]:
                raise Failure(f"--output {text} is {_FORMATS[suffix]} and --format {wanted} is not; leave one out.")
            fields["output"] = {**output, "format": _FORMATS[suffix]}
            typed.setdefault("output.format", "--output")
        return cls(path.parent, path.name)

    def check(self) -> None:
        """Raise Failure if nothing can be written there: asked now, not when the image is ready."""
        folder = self.folder.absolute()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise Failure(f"{folder} is a file, and no folder for images; name another --output.")
        if not os.access(folder, os.W_OK):
            raise Failure(f"{folder} cannot be written; name another folder with --output.")

    def save(self, answer: Answer) -> list[Path]:
        """Write the files of `answer`. A named file takes the place of an older one; further ones are numbered."""
        try:
            if self.name is None:
                return save_files(answer, self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            return [self._replace(file.data, number) for number, file in enumerate(answer.files, start=1)]
        except OSError as error:
            raise Failure(f"{self.folder} cannot be written ({error.strerror}); name another --output.") from None

    def _replace(self, data: bytes, number: int) -> Path:
        path = self.folder / str(self.name)
        if number > 1:
            path = path.with_stem(f"{path.stem}-{number}")
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_bytes(data)
            return path
        part = path.with_name(f".{path.name}.{os.getpid()}.part")  # never half an image under its name
        part.write_bytes(data)
        part.replace(path)
        return path


def check_file(path: Path, option: str) -> None:
    """Raise Failure if a file that was named by `option` cannot be written."""
    folder = path.absolute().parent
    if path.is_dir():
        raise Failure(f"{option} {path} is a folder; name the file that is to be written.")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Failure(f"{option} {path}: {folder} is no folder that can be written; name another file.")


def with_trace_saved(answer: Answer, path: Path) -> Answer:
    """Write the trace of an answer's profile, if it has one, and return the answer with its path. Raises Failure."""
    profile = answer.profile
    if profile is None or not profile.trace:
        return answer
    try:
        path.write_bytes(profile.trace)
    except OSError as error:
        raise Failure(f"{path} cannot be written ({error.strerror}); name another --profile.") from None
    return replace(answer, profile=replace(profile, trace=b"", path=str(path)))


def open_file(place: str, terminal: Terminal) -> None:
    """Show a file or a URL with this machine's own program; warn where there is none."""
    opener = _OPENERS.get(sys.platform, "xdg-open")
    quiet = subprocess.DEVNULL
    try:
        subprocess.Popen([opener, place], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    except OSError:
        terminal.warn(f"--open: {opener} is not installed here; open {place} yourself.")
