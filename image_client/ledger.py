"""A batch as a folder: what was asked, a line for all that happened, and the images beside it.

batch.json      what the batch is             jobs.jsonl     its jobs, in order; written once
ledger.jsonl    one line an event, only ever added to        *.png    the images
results.jsonl   where each image comes from, in order        cost-tracking.json   what it cost

The state of an image is what its lines say, one after the other: whoever is killed loses at most a line that was never
whole. A folder has one owner at a time.
"""

import json
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from image_client.errors import ImageClientError
from image_client.job import ProviderJob
from image_client.prompts_file import Job

State = Literal["waiting", "sent", "accepted", "failed", "unknown", "drafted", "scored", "approved", "rejected"]
DRAWN: tuple[State, ...] = ("drafted", "scored", "approved", "rejected")  # there is a file
OPEN: tuple[State, ...] = ("sent", "accepted")  # whoever held it has died, or still holds it


class LedgerError(ImageClientError):
    """The folder of a batch cannot be used."""

    code = "ledger"
    hint = "Name another folder."


class BatchInfo(BaseModel):
    """What a batch is; `asked` is a digest of its jobs, so that the same one is known again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    id: str
    created: str
    provider: str
    model: str | None
    fallback: tuple[str, ...] = ()
    base_url: str | None = None
    count: int
    asked: str
    source: str


class Record(BaseModel):
    """The lineage of one image, from prompt to approval; `cost` in US dollars, `seconds` from call to last byte."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    state: State = "waiting"
    attempt: int = 0
    prompt: str = ""
    params: dict[str, JsonValue] = Field(default_factory=dict)
    provider: str | None = None
    model: str | None = None
    version: str | None = None
    seed: int | None = None
    file: str | None = None
    media_type: str | None = None
    sha256: str | None = None
    duplicate_of: int | None = None  # an earlier image of the batch with the same bytes
    cost: Decimal | None = None
    seconds: float | None = None
    request_id: str | None = None
    job_id: str | None = None
    job: ProviderJob | None = None
    adapted: tuple[str, ...] = ()
    scores: dict[str, float] = Field(default_factory=dict)
    reason: str | None = None
    error: str | None = None
    at: str | None = None


@dataclass(slots=True)
class Ledger:
    """The open folder of a batch. Use as a context manager; raises LedgerError where another process has it open."""

    folder: Path
    info: BatchInfo
    jobs: Sequence[Job]
    _owner: sqlite3.Connection
    _file: int = -1
    _records: dict[int, Record] = field(default_factory=dict)
    counts: Counter[State] = field(default_factory=Counter)
    cost: Decimal = Decimal(0)  # dollars of all images, as far as they are known

    @classmethod
    def create(cls, folder: Path, jobs: Sequence[Job], info: BatchInfo) -> Self:
        """Begin a batch in a folder that holds none, or open it where it holds the very same one."""
        folder.mkdir(parents=True, exist_ok=True)
        owner = _own(folder)
        try:
            if (folder / "batch.json").exists():
                old = _info(folder)
                if (old.asked, old.provider, old.model) != (info.asked, info.provider, info.model):
                    raise LedgerError(
                        f"{folder} holds another batch ({old.source}, {old.count} images): name another folder."
                    )
                return cls._opened(folder, owner)
            _write(folder / "jobs.jsonl", "".join(f"{job.model_dump_json(exclude_defaults=True)}\n" for job in jobs))
            _write(folder / "batch.json", info.model_dump_json(indent=2) + "\n")  # last: with it the batch is there
            return cls._opened(folder, owner)
        except BaseException:
            owner.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a batch; raises LedgerError where there is none."""
        if not (folder / "batch.json").is_file():
            raise LedgerError(f"{folder} holds no batch: name the folder that --out named.")
        owner = _own(folder)
        try:
            return cls._opened(folder, owner)
        except BaseException:
            owner.close()
            raise

    @classmethod
    def _opened(cls, folder: Path, owner: sqlite3.Connection) -> Self:
        info = _info(folder)
        lines = (folder / "jobs.jsonl").read_bytes().splitlines()
        jobs = [Job.model_validate_json(line) for line in lines]
        if len(jobs) != info.count:
            raise LedgerError(
                f"{folder}/jobs.jsonl has {len(jobs)} jobs, batch.json says {info.count}: it was damaged."
            )
        ledger = cls(folder, info, jobs, owner)
        ledger._replay()
        ledger._file = os.open(folder / "ledger.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the folder."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._owner.close()

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def records(self) -> list[Record]:
        """Return the lineage of all images in the order of the jobs, equal images told."""
        first: dict[str, int] = {}
        records = []
        for index in range(len(self.jobs)):
            record = self._records[index]
            earlier = first.setdefault(record.sha256, index) if record.sha256 else index
            records.append(record if earlier == index else record.model_copy(update={"duplicate_of": earlier}))
        return records

    def add(self, index: int, state: State, **changes: Any) -> Record:
        """Write down what happened to an image, in one write of one line, and return how it stands now."""
        changes = {"state": state, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **changes}
        record = Record.model_validate(self._records[index].model_dump() | changes)
        line = record.model_dump_json(include={"index", *changes}) + "\n"
        os.write(self._file, line.encode())
        self._set(record)
        return record

    def _set(self, record: Record) -> None:
        old = self._records.get(record.index)
        if old is not None:
            self.counts[old.state] -= 1
            self.cost -= old.cost or 0
        self.counts[record.state] += 1
        self.cost += record.cost or 0
        self._records[record.index] = record

    def sync(self) -> None:
        """Bring the ledger to the disk, against a loss of power."""
        os.fsync(self._file)

    def write_results(self) -> Path:
        """Write results.jsonl: the lineage of all images, in order."""
        path = self.folder / "results.jsonl"
        _write(path, "".join(f"{record.model_dump_json(exclude_none=True)}\n" for record in self.records()))
        return path

    def file_name(self, index: int, extension: str) -> str:
        """Return the name of an image's file: the one that was asked for, else its number (from 1) and its prompt."""
        job = self.jobs[index]
        if job.name is not None:
            return f"{job.name}{extension}"
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in job.prompt.lower()).split())
        width = max(4, len(str(len(self.jobs))))
        return f"{index + 1:0{width}d}{'-' if words else ''}{words[:40].strip('-')}{extension}"

    def _replay(self) -> None:
        for job in self.jobs:
            params = {key: value for key, value in job.fields.items() if key != "prompt"}
            params |= {key: str(source.path) for key, source in (("image", job.image), ("mask", job.mask)) if source}
            self._set(Record(index=job.index, prompt=job.prompt, params=params))
        path = self.folder / "ledger.jsonl"
        if not path.exists():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):  # whoever was killed amid a line had not yet told anybody of it
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                event = json.loads(line)
                self._set(Record.model_validate(self._records[event["index"]].model_dump() | event))
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                raise LedgerError(f"{path}:{number} is damaged: mend or remove that line.") from error


def new_id() -> str:
    """Return the name of a new batch."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"


def _info(folder: Path) -> BatchInfo:
    try:
        return BatchInfo.model_validate_json((folder / "batch.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise LedgerError(
            f"{folder}/batch.json cannot be read: it was damaged, or written by another version."
        ) from error


def _own(folder: Path) -> sqlite3.Connection:
    """Hold a folder: a lock of SQLite's, which every system lets go of when its process dies."""
    connection = sqlite3.connect(folder / ".lock", timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        raise LedgerError(f"{folder} is open in another process: wait until that has ended.") from error
    return connection


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
