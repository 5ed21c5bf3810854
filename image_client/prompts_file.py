"""The file that a batch begins with: prompts as text, as a table, or as JSON lines."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from image_client.errors import InvalidRequest
from image_client.request import ImageRequest

_ENDINGS = (".csv", ".jsonl", ".txt")
_FIELDS = tuple(name for name in ImageRequest.model_fields if name not in ("image", "mask", "extra"))
_NAME = re.compile(r"(?!\d{4,}(-|$))[A-Za-z0-9][A-Za-z0-9._ -]{0,79}")  # not the number that a nameless image gets
_MAX_ERRORS = 5
_MAX_IMAGE_MB = 64


class SourceFile(BaseModel):
    """An image or mask on this machine, as it was when the batch began."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    sha256: str

    @classmethod
    def at(cls, path: Path) -> "SourceFile":
        """Return the file as it is; raises InvalidRequest where it cannot be read."""
        return cls(path=path.absolute(), sha256=hashlib.sha256(_bytes(path)).hexdigest())

    def read(self) -> bytes:
        """Return its bytes; raises InvalidRequest where it was changed since the batch began."""
        data = _bytes(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InvalidRequest(f"{self.path} was changed since the batch began: put the old file back.")
        return data


class Job(BaseModel):
    """One image of a batch: `index` counts from 0, `fields` are those of an ImageRequest but for its images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    name: str | None = None  # of its file, without ending
    fields: dict[str, Any] = Field(default_factory=dict)
    image: SourceFile | None = None
    mask: SourceFile | None = None

    @property
    def prompt(self) -> str:
        """What it shows."""
        return str(self.fields.get("prompt", ""))

    def request(self) -> ImageRequest:
        """Return what is sent, its images read."""
        images = {name: source.read() for name, source in (("image", self.image), ("mask", self.mask)) if source}
        return ImageRequest.model_validate({**self.fields, **images})

    def priced(self) -> ImageRequest:
        """Return the request without its images, for what it costs."""
        return ImageRequest.model_construct(**self.fields)


def read_jobs(path: Path, defaults: Mapping[str, Any]) -> list[Job]:
    """Return the jobs of a file in its order; `defaults` hold for each line that does not say otherwise.

    `n` images of a line are n jobs; with a seed each has the next one. A seed in `defaults` counts on through the file.
    Raises InvalidRequest that names the first lines which do not fit.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise InvalidRequest(f"{path.name} is no list of prompts: name a file that ends in {', '.join(_ENDINGS)}.")
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path.name} is no UTF-8 text: save it as UTF-8.") from error
    jobs: list[Job] = []
    errors: list[str] = []
    for number, row in _rows(path, text):
        try:
            jobs.extend(_jobs(row, defaults, path.parent, len(jobs)))
        except (ValidationError, InvalidRequest) as error:
            errors.append(f"{path.name}:{number}: {_reason(error)}")
    if errors:
        more = f" … and {len(errors) - _MAX_ERRORS} more lines" if len(errors) > _MAX_ERRORS else ""
        raise InvalidRequest("; ".join(errors[:_MAX_ERRORS]) + more)
    if not jobs:
        raise InvalidRequest(f"{path.name} holds no prompt: write one a line.")
    named: dict[str, int] = {}
    for job in jobs:
        if job.name is not None and named.setdefault(job.name.casefold(), job.index) != job.index:
            raise InvalidRequest(f"{path.name}: the name {job.name!r} stands twice: each image needs its own.")
    return jobs


def repeated(jobs: list[Job]) -> int:
    """Return how many jobs ask for the very image of an earlier one: the same fields and the same seed."""
    seeded = [
        json.dumps([job.fields, job.image and job.image.sha256, job.mask and job.mask.sha256], sort_keys=True)
        for job in jobs
        if job.fields.get("seed") is not None
    ]
    return len(seeded) - len(set(seeded))


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix.lower() == ".txt":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, {"prompt": line.strip()}
    elif path.suffix.lower() == ".csv":
        yield from _table(path, text)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _object(path, number, line)


def _table(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InvalidRequest(f"{path.name}:{reader.line_num}: it has not as many cells as the first line.")
            cells = {name.strip(): cell.strip() for name, cell in row.items() if cell.strip()}
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InvalidRequest(f"{path.name}:{reader.line_num}: {error}.") from error


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"{path.name}:{number}: it is no JSON ({error}).") from error
    if not isinstance(row, dict):
        raise InvalidRequest(f"{path.name}:{number}: it is no JSON object.")
    return row


def _jobs(row: dict[str, Any], defaults: Mapping[str, Any], folder: Path, first: int) -> list[Job]:
    row = {key: value for key, value in row.items() if value is not None}
    name, image, mask = row.pop("name", None), row.pop("image", None), row.pop("mask", None)
    extra = dict(defaults.get("extra", {})) | _extra(row)
    if unknown := sorted(set(row) - set(_FIELDS)):
        raise InvalidRequest(f"{unknown[0]!r} is no field: known are name, image, mask, extra.…, {', '.join(_FIELDS)}.")
    if name is not None and not _NAME.fullmatch(str(name)):
        raise InvalidRequest(
            f"name {name!r} does not fit: letters, digits, space, '.', '_', '-'; 80 at most; no 0001- in front."
        )
    files = {key: SourceFile.at(folder / str(value)) for key, value in (("image", image), ("mask", mask)) if value}
    fields = (
        {key: value for key, value in defaults.items() if key != "extra"} | row | ({"extra": extra} if extra else {})
    )
    if files and "operation" not in fields:
        fields["operation"] = "inpaint" if mask else "edit"
    checked = ImageRequest.model_validate({**fields, **dict.fromkeys(files, b"checked")})
    return _copies(checked, name, files, first, seeded="seed" in row)


def _copies(
    checked: ImageRequest, name: str | None, files: Mapping[str, SourceFile], first: int, *, seeded: bool
) -> list[Job]:
    """Return a job for each of the `n` images of a row."""
    jobs = []
    for copy in range(checked.n):
        own = checked.model_dump(mode="json", exclude_defaults=True, exclude={"image", "mask", "n"})
        if checked.seed is not None:
            own["seed"] = checked.seed + copy if seeded else checked.seed + first + copy
        numbered = f"{name}-{copy + 1}" if name is not None and checked.n > 1 else name
        jobs.append(Job(index=first + copy, name=numbered, fields=own, **files))
    return jobs


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    """Take the provider's own fields out of a row: `extra` of a JSON line, `extra.…` columns of a table."""
    extra = row.pop("extra", {})
    if not isinstance(extra, dict):
        raise InvalidRequest("extra is no JSON object.")
    for key in [key for key in row if key.startswith("extra.")]:
        text = row.pop(key)
        try:
            extra[key.removeprefix("extra.")] = json.loads(text)
        except ValueError:
            extra[key.removeprefix("extra.")] = text
    return extra


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_IMAGE_MB * 2**20:
            raise InvalidRequest(f"{path} is larger than {_MAX_IMAGE_MB} MB.")
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from error


def _reason(error: ValidationError | InvalidRequest) -> str:
    if isinstance(error, InvalidRequest):
        return error.message
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")
