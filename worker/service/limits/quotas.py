"""Quotas of each caller: requests a minute and pixel-steps a day, kept in a file across restarts.

A job or a question costs one request, and a job also the pixel-steps of the model that generates it, even if several
models were tried. A refused caller pays nothing, and pixel-steps for which nothing was generated are given back.

Each worker has one file, replaced as a whole by a rename, so that no lock is needed on a network volume. Several
workers each give a caller the full share, as an operator of one endpoint per key expects.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from worker.core.errors import JobCancelled, JobTimeout, QuotaExceeded, RateLimited
from worker.core.result import Progress

_LOG = logging.getLogger(__name__)
_DAY_S = 86_400
_MINUTE_S = 60.0
# Ends of a job that its caller cut short: the caller pays for the device's work.
_CALLERS_DOING = (asyncio.CancelledError, JobCancelled, JobTimeout)


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """Limits for each caller; 0 is no limit."""

    requests_per_minute: int = 0
    pixel_steps_per_day: int = 0


@dataclass(frozen=True, slots=True)
class _Account:
    """`tokens` requests could be sent at once at `seen_at`; `used` pixel-steps were generated on `day` (UTC)."""

    tokens: float
    seen_at: float
    day: int = 0
    used: int = 0


@dataclass(slots=True)
class Reservation:
    """The cost of one job to its caller. A caller without a name has no account."""

    caller: str | None
    day: int | None = None
    """The day on which the quota was reserved; None before that."""
    pixel_steps: int = 0
    generating: bool = False

    def note(self, progress: Progress) -> None:
        """Note the job's progress. Safe in any thread."""
        self.generating = self.generating or progress.phase == "inference"


class Quotas:
    """Accounts by caller. Used on one event loop; `now` is wall time in seconds, to outlive a restart."""

    def __init__(self, limits: QuotaLimits, file: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._file = file
        self._now = now
        self._accounts = _read(file) if file is not None else {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quotas")  # a network volume may take its time
        self._save_is_due = False

    def check(self, caller: str | None) -> None:
        """Raise RateLimited or QuotaExceeded if even the smallest job of this caller would be refused now."""
        if caller is not None:
            account = self._account(caller)
            self._check_rate(account)
            self._check_day(account, 1)

    @contextmanager
    def reserve(self, caller: str | None) -> Iterator[Reservation]:
        """Enclose one job of `caller`. Swallows no exception."""
        reservation = Reservation(caller)
        try:
            yield reservation
        except BaseException as error:
            if not (reservation.generating and isinstance(error, _CALLERS_DOING)):
                self._give_back(reservation)
            raise

    def charge(self, reservation: Reservation, pixel_steps: int) -> None:
        """Reserve `pixel_steps` for a job, in place of its earlier reservation.

        Raises RateLimited or QuotaExceeded, and then changes nothing.
        """
        if reservation.caller is None or self._limits == QuotaLimits():
            return
        account = self._account(reservation.caller)
        if reservation.day is None:
            self._check_rate(account)
            account = replace(account, tokens=account.tokens - 1)
        else:
            account = _without(account, reservation)
        self._check_day(account, pixel_steps)
        self._set(reservation.caller, replace(account, used=account.used + pixel_steps))
        reservation.day, reservation.pixel_steps = account.day, pixel_steps

    def charge_question(self, caller: str | None) -> None:
        """Count one request that generates nothing. Raises RateLimited."""
        if caller is None or not self._limits.requests_per_minute:
            return
        account = self._account(caller)
        self._check_rate(account)
        self._set(caller, replace(account, tokens=account.tokens - 1))

    def close(self) -> None:
        """Return once everything is written."""
        self._thread.shutdown()

    def _give_back(self, reservation: Reservation) -> None:
        """Take a job's pixel-steps off its account; the request stays one."""
        if reservation.caller is not None and reservation.day is not None:
            self._set(reservation.caller, _without(self._account(reservation.caller), reservation))

    def _set(self, caller: str, account: _Account) -> None:
        self._accounts[caller] = account
        if self._file is not None and not self._save_is_due:
            self._save_is_due = True
            self._thread.submit(self._save, self._file)

    def _save(self, file: Path) -> None:
        self._save_is_due = False  # before the copy: later changes need another save
        _write(file, self._accounts.copy())

    def _account(self, caller: str) -> _Account:
        """Return the caller's account as of now: refilled since it was last seen, and unused on a new day."""
        now, burst = self._now(), float(self._limits.requests_per_minute)
        account = self._accounts.get(caller) or _Account(burst, now)
        passed = max(0.0, now - account.seen_at)  # a clock may have been set back
        tokens = min(burst, account.tokens + passed * burst / _MINUTE_S)
        day = int(now // _DAY_S)
        return _Account(tokens, now, day, account.used if account.day == day else 0)

    def _check_rate(self, account: _Account) -> None:
        rate = self._limits.requests_per_minute
        if rate and account.tokens < 1:
            wait_s = math.ceil((1 - account.tokens) * _MINUTE_S / rate)
            raise RateLimited(
                f"At most {rate} requests a minute are taken from one caller; try again in {wait_s} seconds.",
                details={"retry_after_s": wait_s, "requests_per_minute": rate},
            )

    def _check_day(self, account: _Account, pixel_steps: int) -> None:
        limit = self._limits.pixel_steps_per_day
        if limit and pixel_steps > limit:
            raise QuotaExceeded(
                f"The job is {pixel_steps:,} pixel-steps (width x height x frames x steps x images) and one caller "
                f"gets {limit:,} a day; ask for fewer images, fewer steps or a smaller size.",
                details={"pixel_steps": pixel_steps, "pixel_steps_per_day": limit},
                retryable=False,  # on no day
            )
        if limit and account.used + pixel_steps > limit:
            wait_s = math.ceil(_DAY_S - self._now() % _DAY_S)
            left = max(0, limit - account.used)
            clause = f", and this job is {pixel_steps:,}; ask for less, or" if left else ";"
            raise QuotaExceeded(
                f"One caller gets {limit:,} pixel-steps a day, of which {left:,} are left{clause} try again in "
                f"{wait_s} seconds.",
                details={"retry_after_s": wait_s, "pixel_steps_per_day": limit, "used": account.used},
            )


def _without(account: _Account, reservation: Reservation) -> _Account:
    """Return `account` without this job. A reservation of another day has lapsed already."""
    return (
        replace(account, used=max(0, account.used - reservation.pixel_steps))
        if account.day == reservation.day
        else account
    )


def _read(file: Path) -> dict[str, _Account]:
    try:
        accounts = json.loads(file.read_bytes())
        return {str(caller): _Account(**account) for caller, account in accounts.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _LOG.warning("the quotas of earlier runs cannot be read (%s); every caller starts anew", type(error).__name__)
        return {}


def _write(file: Path, accounts: dict[str, _Account]) -> None:
    text = json.dumps({caller: asdict(account) for caller, account in accounts.items()})
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        part.replace(file)
    except OSError as error:  # a full disk is no reason to refuse a job
        _LOG.warning("quotas are not saved: %s", type(error).__name__)
