"""The accounts of callers: how many requests one may send, and what was drawn for them today.

Each worker has one file, replaced as a whole by a rename, so that no lock is needed on a network volume. Processes
behind one port share their accounts through a second file, on a disk of the machine and under a lock.
"""

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """`tokens` requests could be sent at once at `seen_at`; `used` pixel-steps were generated on `day` (UTC)."""

    tokens: float
    seen_at: float
    day: int = 0
    used: int = 0


class Accounts:
    """Accounts by caller, kept in `file` across restarts. `shared` is the file of processes that share them."""

    def __init__(self, file: Path | None = None, shared: Path | None = None) -> None:
        self._file = file
        self._shared = shared
        self._accounts = _read(file) if file is not None else {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quotas")  # a network volume may take its time
        self._save_is_due = False

    @contextmanager
    def held(self) -> Iterator[dict[str, Account]]:
        """Hold all accounts, to read and to change them; other processes wait."""
        if self._shared is None:
            yield self._accounts
            return
        import fcntl  # which not every system has, nor processes behind one port

        descriptor = os.open(self._shared, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            written = _read_descriptor(descriptor)
            if written:
                self._accounts = _parse(written)
            yield self._accounts
            text = _text(self._accounts)
            if text != written:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, text, 0)
        finally:
            os.close(descriptor)  # which gives the lock back

    def save(self) -> None:
        """Write the accounts down soon."""
        if self._file is not None and not self._save_is_due:
            self._save_is_due = True
            self._thread.submit(self._save, self._file)

    def close(self) -> None:
        """Return once everything is written."""
        self._thread.shutdown()

    def _save(self, file: Path) -> None:
        self._save_is_due = False  # before the copy: later changes need another save
        _write(file, self._accounts.copy())


def _read_descriptor(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _parse(text: bytes) -> dict[str, Account]:
    return {str(caller): Account(**account) for caller, account in json.loads(text).items()}


def _text(accounts: dict[str, Account]) -> bytes:
    return json.dumps({caller: asdict(account) for caller, account in accounts.items()}).encode()


def _read(file: Path) -> dict[str, Account]:
    try:
        return _parse(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _LOG.warning("the quotas of earlier runs cannot be read (%s); every caller starts anew", type(error).__name__)
        return {}


def _write(file: Path, accounts: dict[str, Account]) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(_text(accounts))
        part.replace(file)
    except OSError as error:  # a full disk is no reason to refuse a job
        _LOG.warning("quotas are not saved: %s", type(error).__name__)
