"""What each caller may use: requests a minute and pixel-steps a day, remembered in a file across restarts.

One file for each worker, replaced as a whole by a rename, so that no lock is needed on a network volume; several
workers each give a caller his full share, which is what an operator of one endpoint per key expects.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from worker.core.errors import QuotaExceeded, RateLimited

_LOG = logging.getLogger(__name__)
_DAY_S = 86_400
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """For each caller; 0 is no limit."""

    requests_per_minute: int = 0
    pixel_steps_per_day: int = 0


@dataclass(slots=True)
class _Account:
    """`tokens` requests could be sent at once at `seen_at`; `used` pixel-steps were drawn on `day` (UTC)."""

    tokens: float
    seen_at: float
    day: int = 0
    used: int = 0


class Quotas:
    """Accounts by caller. Safe to use from several threads; `now` is wall time in seconds, to outlive a restart."""

    def __init__(self, limits: QuotaLimits, file: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._file = file
        self._now = now
        self._lock = threading.Lock()
        self._accounts = _read(file) if file is not None else {}

    def charge(self, caller: str, pixel_steps: int) -> None:
        """Book one request of this much work. Raises RateLimited or QuotaExceeded, and then books nothing."""
        if not (self._limits.requests_per_minute or self._limits.pixel_steps_per_day):
            return
        with self._lock:
            account = self._account(caller)
            self._check_rate(account)
            self._check_day(account, pixel_steps)
            account.tokens -= 1
            account.used += pixel_steps
            self._accounts[caller] = account
            if self._file is not None:
                _write(self._file, self._accounts)

    def _account(self, caller: str) -> _Account:
        """The caller's account as of now: refilled since it was last seen, and empty on a new day."""
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
        if limit and account.used + pixel_steps > limit:
            wait_s = math.ceil(_DAY_S - self._now() % _DAY_S)
            left = max(0, limit - account.used)
            raise QuotaExceeded(
                f"One caller gets {limit:,} pixel-steps a day, of which {left:,} are left, and this job is "
                f"{pixel_steps:,}; ask for less, or try again in {wait_s} seconds.",
                details={"retry_after_s": wait_s, "pixel_steps_per_day": limit, "used": account.used},
            )


def _read(file: Path) -> dict[str, _Account]:
    try:
        found = json.loads(file.read_bytes())
        return {str(caller): _Account(**account) for caller, account in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        _LOG.warning("the quotas of earlier runs cannot be read (%s); everybody starts anew", type(error).__name__)
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
