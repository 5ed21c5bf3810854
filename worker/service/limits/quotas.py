"""Quotas of each caller: requests a minute and pixel-steps a day, kept in a file across restarts.

A job or a question costs one request, and a job also the pixel-steps of the model that generates it, even if several
models were tried. A refused caller pays nothing, and pixel-steps for which nothing was generated are given back.

Several workers each give a caller the full share, as an operator of one endpoint per key expects; the processes behind
one port give it once.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from worker.core.errors import JobCancelled, JobTimeout, QuotaExceeded, RateLimited
from worker.core.result import Progress
from worker.service.limits.accounts import Account, Accounts

MAX_ACCOUNTS = 20_000
_DAY_S = 86_400
_MINUTE_S = 60.0
# Ends of a job that its caller cut short: the caller pays for the device's work.
_CALLERS_DOING = (asyncio.CancelledError, JobCancelled, JobTimeout)


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """Limits for each caller; 0 is no limit."""

    requests_per_minute: int = 0
    pixel_steps_per_day: int = 0


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
        self.generating = self.generating or progress.phase in ("inference", "train")


class Quotas:
    """Accounts by caller. Used on one event loop; `now` is wall time in seconds, to outlive a restart.

    `whom` is the word for one who has an account. Of very many, those are forgotten who could send most.
    """

    def __init__(
        self,
        limits: QuotaLimits,
        accounts: Accounts | None = None,
        now: Callable[[], float] = time.time,
        whom: str = "caller",
    ) -> None:
        self._whom = whom
        self._limits = limits
        self._accounts = accounts or Accounts()
        self._now = now

    def check(self, caller: str | None) -> None:
        """Raise RateLimited or QuotaExceeded if even the smallest job of this caller would be refused now."""
        if caller is not None:
            with self._accounts.held() as accounts:
                account = self._account(accounts, caller)
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
        with self._accounts.held() as accounts:
            account = self._account(accounts, reservation.caller)
            if reservation.day is None:
                self._check_rate(account)
                account = replace(account, tokens=account.tokens - 1)
            else:
                account = _without(account, reservation)
            self._check_day(account, pixel_steps)
            accounts[reservation.caller] = replace(account, used=account.used + pixel_steps)
        self._accounts.save()
        reservation.day, reservation.pixel_steps = account.day, pixel_steps

    def spare(self, reservation: Reservation, pixel_steps: int) -> None:
        """Take `pixel_steps` off a reservation, and off its account."""
        self._give_back(replace(reservation, pixel_steps=pixel_steps))
        reservation.pixel_steps = max(0, reservation.pixel_steps - pixel_steps)

    def charge_question(self, caller: str | None) -> None:
        """Count one request that generates nothing. Raises RateLimited."""
        if caller is None or not self._limits.requests_per_minute:
            return
        with self._accounts.held() as accounts:
            account = self._account(accounts, caller)
            self._check_rate(account)
            accounts[caller] = replace(account, tokens=account.tokens - 1)
            if len(accounts) > MAX_ACCOUNTS:
                self._forget(accounts)
        self._accounts.save()

    def close(self) -> None:
        """Return once everything is written."""
        self._accounts.close()

    def _give_back(self, reservation: Reservation) -> None:
        """Take a job's pixel-steps off its account; the request stays one."""
        if reservation.caller is not None and reservation.day is not None:
            with self._accounts.held() as accounts:
                accounts[reservation.caller] = _without(self._account(accounts, reservation.caller), reservation)
            self._accounts.save()

    def _forget(self, accounts: dict[str, Account]) -> None:
        """Forget half of all accounts, first of all those that say nothing any more: full ones of nothing used."""
        now = {caller: self._account(accounts, caller) for caller in accounts}
        for caller in sorted(now, key=lambda name: (now[name].used, -now[name].tokens))[: len(now) // 2]:
            del accounts[caller]

    def _account(self, accounts: Mapping[str, Account], caller: str) -> Account:
        """Return the caller's account as of now: refilled since it was last seen, and unused on a new day."""
        now, burst = self._now(), float(self._limits.requests_per_minute)
        account = accounts.get(caller) or Account(burst, now)
        passed = max(0.0, now - account.seen_at)  # a clock may have been set back
        tokens = min(burst, account.tokens + passed * burst / _MINUTE_S)
        day = int(now // _DAY_S)
        return Account(tokens, now, day, account.used if account.day == day else 0)

    def _check_rate(self, account: Account) -> None:
        rate = self._limits.requests_per_minute
        if rate and account.tokens < 1:
            wait_s = math.ceil((1 - account.tokens) * _MINUTE_S / rate)
            raise RateLimited(
                f"At most {rate} requests a minute are taken from one {self._whom}; try again in {wait_s} seconds.",
                details={"retry_after_s": wait_s, "requests_per_minute": rate},
            )

    def _check_day(self, account: Account, pixel_steps: int) -> None:
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


def _without(account: Account, reservation: Reservation) -> Account:
    """Return `account` without this job. A reservation of another day has lapsed already."""
    return (
        replace(account, used=max(0, account.used - reservation.pixel_steps))
        if account.day == reservation.day
        else account
    )
