"""What was spent: one SQLite file that all processes of a machine share.

A sum is reserved before a call and settled after it. A row is one call. While its outcome is open it counts as spent,
whoever has died meanwhile, so that a sum is never too small: `reserved` (being generated, or lost), `settled` (its cost
is known), `unknown` (it may have been charged).
A row whose price is unknown counts nothing and is counted by itself. Sums are billionths of a dollar.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from image_client.errors import NotSent
from image_client.money import dollars_of, nano, shown

State = Literal["reserved", "settled", "unknown"]
Scope = Literal["session", "month"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  key TEXT PRIMARY KEY, session TEXT NOT NULL, month TEXT NOT NULL, provider TEXT NOT NULL, model TEXT,
  images INTEGER NOT NULL, state TEXT NOT NULL, nano INTEGER, seconds REAL, began TEXT NOT NULL, ended TEXT);
CREATE INDEX IF NOT EXISTS calls_month ON calls (month);
CREATE INDEX IF NOT EXISTS calls_session ON calls (session);
CREATE TABLE IF NOT EXISTS alerts (
  scope TEXT NOT NULL, name TEXT NOT NULL, nano INTEGER NOT NULL, percent INTEGER NOT NULL,
  PRIMARY KEY (scope, name, nano, percent));
"""
_COLUMNS = ("key", "session", "month", "provider", "model", "images", "state", "nano", "seconds", "began", "ended")
_WAIT_S = 60.0  # for another process's transaction, which takes a millisecond
_LAST = 200  # calls of a model that its time is measured by


class BudgetExceeded(NotSent):
    """The call would go over the budget: nothing was sent, and it may be sent once the budget is raised."""

    code = "budget_exceeded"
    hint = "Raise the budget, and resume."


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget in dollars of one session or of one calendar month (UTC)."""

    scope: Scope
    name: str
    dollars: Decimal


@dataclass(frozen=True, slots=True)
class Crossing:
    """A threshold that was reached for the first time: `committed` of `limit`, in dollars."""

    limit: Limit
    percent: int
    committed: Decimal


@dataclass(frozen=True, slots=True)
class Call:
    """One row of the ledger; `dollars` is None where the price is unknown."""

    key: str
    session: str
    month: str
    provider: str
    model: str | None
    images: int
    state: State
    dollars: Decimal | None
    seconds: float | None
    began: str
    ended: str | None


class SpendingLedger:
    """The ledger of a machine. Every method may be called from any thread; a transaction takes about a millisecond."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        with self._transaction() as database:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                database.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def reserve(self, call: Call, limits: Sequence[Limit], thresholds: Sequence[int]) -> list[Crossing]:
        """Write a call down before it is sent, and return the thresholds that it reached.

        Raises BudgetExceeded where it would not fit; `crossings` of that error are the thresholds then reached. A key
        that is there already is not counted a second time.
        """
        amount = None if call.dollars is None else nano(call.dollars)
        with self._transaction() as database:
            old = database.execute("SELECT state FROM calls WHERE key = ?", (call.key,)).fetchone()
            if old is not None:
                return []
            for limit in limits:
                committed = _committed(database, limit)
                if committed + (amount or 0) > nano(limit.dollars):
                    raise BudgetExceeded(
                        f"The budget of {limit.scope} {limit.name} is {shown(limit.dollars)}, of which "
                        f"{shown(dollars_of(committed))} are spent or reserved, and an image would add "
                        f"{shown(call.dollars)}: raise it to go on."
                    )
            database.execute(
                "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, 'reserved', ?, NULL, ?, NULL)",
                (call.key, call.session, call.month, call.provider, call.model, call.images, amount, call.began),
            )
            return [crossing for limit in limits for crossing in _crossed(database, limit, thresholds)]

    def exhausted(self, limit: Limit) -> Crossing | None:
        """Note that a call was refused for this limit; return that as the crossing of its whole the first time."""
        with self._transaction() as database:
            if not _first_time(database, limit, 100):
                return None
            return Crossing(limit, 100, dollars_of(_committed(database, limit)))

    def settle(self, key: str, dollars: Decimal | None, seconds: float | None) -> None:
        """Write down what a call cost in the end; None where its price is unknown. Settling twice changes nothing."""
        with self._transaction() as database:
            database.execute(
                "UPDATE calls SET state = 'settled', nano = ?, seconds = ?, ended = ? "
                "WHERE key = ? AND state != 'settled'",
                (None if dollars is None else nano(dollars), seconds, _now(), key),
            )

    def doubt(self, key: str) -> None:
        """Write down that a call may have been charged: its reservation goes on counting."""
        with self._transaction() as database:
            database.execute(
                "UPDATE calls SET state = 'unknown', ended = ? WHERE key = ? AND state = 'reserved'", (_now(), key)
            )

    def release(self, key: str) -> None:
        """Take back the reservation of a call that cannot have run."""
        with self._transaction() as database:
            database.execute("DELETE FROM calls WHERE key = ? AND state != 'settled'", (key,))

    def committed(self, scope: Scope, name: str) -> Decimal:
        """Return what is spent or reserved, in dollars."""
        with self._transaction() as database:
            return dollars_of(_committed(database, Limit(scope, name, Decimal(0))))

    def calls(self, scope: Scope | None = None, name: str = "") -> list[Call]:
        """Return the calls of a session or month, or all, oldest first."""
        where, values = ("", ()) if scope is None else (f"WHERE {scope} = ?", (name,))
        with self._transaction() as database:
            rows = database.execute(f"SELECT * FROM calls {where} ORDER BY began, rowid", values).fetchall()  # noqa: S608
        return [_call(row) for row in rows]

    def seconds_per_image(self, provider: str, model: str | None) -> tuple[float, float] | None:
        """Return the median and the longest of what an image of a model took here lately, None where there was none."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT seconds, images FROM calls WHERE provider = ? AND model IS ? AND state = 'settled' "
                "AND seconds > 0 ORDER BY ended DESC LIMIT ?",
                (provider, model, _LAST),
            ).fetchall()
        each = [seconds / images for seconds, images in rows]
        return (median(each), max(each)) if each else None

    def models(self) -> list[tuple[str, str]]:
        """Return the providers and models that were timed here; a model that has no name is empty."""
        with self._transaction() as database:
            query = "SELECT DISTINCT provider, COALESCE(model, '') FROM calls WHERE seconds > 0 ORDER BY 1, 2"
            return [(provider, model) for provider, model in database.execute(query).fetchall()]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file for oneself, among threads and processes."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _call(row: Sequence[Any]) -> Call:
    values = dict(zip(_COLUMNS, row, strict=True))
    amount = values.pop("nano")
    return Call(**values, dollars=None if amount is None else dollars_of(amount))


def _committed(database: sqlite3.Connection, limit: Limit) -> int:
    query = f"SELECT COALESCE(SUM(nano), 0) FROM calls WHERE {limit.scope} = ?"  # noqa: S608 -- one of two literals
    return int(database.execute(query, (limit.name,)).fetchone()[0])


def _crossed(database: sqlite3.Connection, limit: Limit, thresholds: Sequence[int]) -> list[Crossing]:
    committed = _committed(database, limit)
    reached = [percent for percent in sorted(thresholds) if committed * 100 >= nano(limit.dollars) * percent]
    new = [percent for percent in reached if _first_time(database, limit, percent)]
    return [Crossing(limit, percent, dollars_of(committed)) for percent in new]


def _first_time(database: sqlite3.Connection, limit: Limit, percent: int) -> bool:
    row = (limit.scope, limit.name, nano(limit.dollars), percent)
    return database.execute("INSERT OR IGNORE INTO alerts VALUES (?, ?, ?, ?)", row).rowcount == 1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
