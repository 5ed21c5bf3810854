"""A batch: many images from one list, as a folder that goes on where it was stopped, each image once.

What becomes of an image:  waiting → sent [→ accepted] → drafted → scored → approved | rejected
                                                      ↘ failed | unknown
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from image_client.budget import Budget, Quote
from image_client.client import ImageClient
from image_client.errors import (
    AuthenticationFailed,
    ImageClientError,
    InvalidRequest,
    PaymentRequired,
    ProviderUnavailable,
    UnknownOutcome,
)
from image_client.image import Image
from image_client.job import ProviderJob
from image_client.ledger import DRAWN, Ledger, Record, State
from image_client.options import Attempt, ClientOptions
from image_client.paying import account, outcome_is_open
from image_client.prices import PriceUnknown
from image_client.prompts_file import Job
from image_client.request import ImageRequest
from image_client.scoring import told_by_worker
from image_client.spending import BudgetExceeded
from image_client.throttle import Throttle

_AWAY = 5  # images in a row: each was tried for as long as its deadline allows


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a batch is: `drawn`, `failed`, `unknown` of `total` images; `cost` in dollars of those drawn in all."""

    total: int
    drawn: int
    failed: int
    unknown: int
    in_flight: int
    cost: Decimal
    allowed: int  # requests at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of a batch ended; `stopped` says why it did not come to its end, `records` are in order."""

    records: list[Record]
    stopped: str | None
    seconds: float
    drawn_now: int
    most_in_flight: int

    @property
    def cost(self) -> Decimal:
        """Dollars of the images, as far as they are known."""
        return sum((record.cost for record in self.records if record.cost is not None), Decimal(0))

    def count(self, *states: str) -> int:
        """Return how many images are in one of these states."""
        return sum(record.state in states for record in self.records)


@dataclass(frozen=True, slots=True)
class Again:
    """What is sent again besides what never was: those that failed, and those that may have been charged already."""

    failed: bool = False
    unknown: bool = False


def is_wanted(record: Record, again: Again) -> bool:
    """Whether a run has to do something about an image."""
    return record.state not in DRAWN and (record.state != "failed" or again.failed)


def may_have_run(record: Record, again: Again, *, idempotent: bool) -> bool:
    """Whether it was sent, by a process that died or without an answer, so that sending it again may charge twice."""
    return record.state in ("sent", "unknown") and not (idempotent or again.unknown)


class BatchRun:
    """One run over the open ledger of a batch. `connect` makes its client of the options that it is given."""

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        connect: Callable[[ClientOptions], ImageClient],
        *,
        concurrency: int = 50,
        options: ClientOptions | None = None,
        again: Again = Again(),
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.ledger = ledger
        self.budget = budget
        self.throttle = Throttle(concurrency)
        self._again = again
        self._on_progress = on_progress
        self._told = options or ClientOptions()
        self._client = connect(
            replace(
                self._told,
                concurrency=concurrency,
                price=self._told.price or budget.prices.of_request,
                on_attempt=self._hear,
                on_accepted=self._accept,
            )
        )
        self._in_flight: dict[str, int] = {}  # request id → index
        self._stopped: str | None = None
        self._drawn_now = 0
        self._away = 0  # images in a row for which the provider was not there

    def stop(self, reason: str) -> None:
        """Begin no further image; those in flight come to their end."""
        self._stopped = self._stopped or reason

    @property
    def stopped(self) -> str | None:
        """Why no further image is begun, None while they are."""
        return self._stopped

    async def run(self) -> Outcome:
        """Generate what is missing, and return how the batch then stands."""
        began = time.monotonic()
        try:
            async with self._client, asyncio.TaskGroup() as group:
                await asyncio.to_thread(self._settle_again)
                for job in self.ledger.jobs:
                    if not is_wanted(self.ledger[job.index], self._again):
                        continue
                    key = self._key(self._attempt(self.ledger[job.index]))
                    await self.throttle.enter(key)
                    if self._stopped is not None:
                        self.throttle.leave(key)
                        break
                    group.create_task(self._one(job, key))
        finally:
            self.ledger.sync()
            self.ledger.write_results()
        records = self.ledger.records()
        return Outcome(records, self._stopped, time.monotonic() - began, self._drawn_now, self.throttle.most_in_flight)

    def _attempt(self, record: Record) -> Record:
        """Return the record with the number of the call to come; one that may be repeated keeps its number."""
        lost = record.state in ("sent", "unknown") and self._again.unknown and not self._client.idempotent
        again = lost or record.state == "failed"
        return record.model_copy(update={"attempt": record.attempt + 1}) if again else record

    def _key(self, record: Record) -> str:
        return f"{self.ledger.info.id}-{record.index + 1}-{record.attempt + 1}"

    async def _found(self, record: Record, request: ImageRequest) -> ProviderJob | None:
        """Return its job from the provider's own list; without one its outcome is unknown, and it is not sent again."""
        try:
            job = await self._client.find(request, request_id=self._key(record))
        except ImageClientError:
            job = None
        if job is not None and job.job_id not in {r.job_id for r in self.ledger.records() if r.index != record.index}:
            self.ledger.add(record.index, "accepted", job=job, job_id=job.job_id)
            return job
        self.budget.ledger.doubt(self._key(record))
        if record.state == "sent":
            reason = "Its process ended before an answer came: it may have been charged."
            self.ledger.add(record.index, "unknown", error="unknown_outcome", reason=reason)
        return None

    def _settle_again(self) -> None:
        """Settle what was written into the ledger by a process that died before it could settle it."""
        for record in self.ledger.records():
            if record.state in DRAWN:
                self.budget.ledger.settle(self._key(record), record.cost, record.seconds)

    async def _one(self, job: Job, key: str) -> None:
        record = self._attempt(self.ledger[job.index])
        quote, began = Quote(None, None), time.monotonic()
        self._in_flight[key] = job.index
        try:
            info, priced = self.ledger.info, self._priced(job)
            quote = await asyncio.to_thread(self.budget.quote, info.provider, priced, info.fallback)
            taken = record.job if record.state == "accepted" else None
            if taken is None:
                request = await asyncio.to_thread(job.request)
                if may_have_run(record, self._again, idempotent=self._client.idempotent):
                    taken = await self._found(record, request)
                    if taken is None:
                        return
            if taken is not None:
                image = (await self._client.collect(taken))[0]
            else:
                await asyncio.to_thread(self.budget.reserve, key, info.provider, priced, quote)
                self.ledger.add(job.index, "sent", attempt=record.attempt, request_id=key, error=None, reason=None)
                image = await self._client.send(request, request_id=key)
            await self._keep(job.index, key, image, quote)
        except ImageClientError as error:
            await self._fail(job.index, key, error, quote, time.monotonic() - began)
        except OSError as error:  # a full disk: the line still says that it was sent
            self.stop(f"{self.ledger.folder} cannot be written to: {error.strerror}.")
        finally:
            self._in_flight.pop(key, None)
            self.throttle.leave(key)
            self._tell()

    async def _keep(self, index: int, key: str, image: Image, quote: Quote) -> None:
        """Write the file, then its line, then its cost: whoever dies in between loses none of them."""
        name = self.ledger.file_name(index, image.extension)
        digest = await asyncio.to_thread(_write_image, self.ledger.folder / name, image.data)
        cost = self.budget.cost(image.cost, quote, image.seconds)
        self.ledger.add(
            index,
            "drafted",
            provider=image.provider,
            model=image.model,
            version=image.version,
            seed=image.seed,
            file=name,
            media_type=image.media_type,
            sha256=digest,
            cost=cost,
            seconds=round(image.seconds, 3),
            request_id=key,
            job_id=image.job_id,
            adapted=image.adapted,
            scores=told_by_worker(image.raw),
            error=None,
            reason=None,
        )
        self._drawn_now += 1
        self._away = 0
        await asyncio.to_thread(self.budget.ledger.settle, key, cost, image.seconds)

    async def _fail(self, index: int, key: str, error: ImageClientError, quote: Quote, seconds: float) -> None:
        if isinstance(error, BudgetExceeded | PriceUnknown):
            self.stop(error.message)
            return
        collecting = self.ledger[index].state == "accepted" and isinstance(error, InvalidRequest)
        if not collecting:  # a question that could not be asked says nothing about the job
            await asyncio.to_thread(account, self.budget, key, error, quote, seconds)
        if collecting:
            self.ledger.add(index, "accepted", error=error.code, reason=error.message)
        elif self._is_hopeless(error):
            self.stop(error.message)
            self.ledger.add(index, "waiting")
        elif outcome_is_open(error) and (job := getattr(error, "job", None) or self.ledger[index].job):
            self.ledger.add(index, "accepted", job=job, error=error.code, reason=error.message)
        else:
            state: State = "unknown" if isinstance(error, UnknownOutcome) or outcome_is_open(error) else "failed"
            self.ledger.add(index, state, error=error.code, reason=error.message)

    def _is_hopeless(self, error: ImageClientError) -> bool:
        """Whether no other image would fare better: a refused token, an empty account, a provider that is away."""
        self._away = self._away + 1 if isinstance(error, ProviderUnavailable) else 0
        return isinstance(error, AuthenticationFailed | PaymentRequired) or self._away >= _AWAY

    def _hear(self, attempt: Attempt) -> None:
        self.throttle.hear(attempt)
        if self._told.on_attempt is not None:
            self._told.on_attempt(attempt)
        self._tell()

    def _accept(self, job: ProviderJob) -> None:
        index = self._in_flight.get(job.request_id)
        if index is not None:
            self.ledger.add(index, "accepted", job=job, job_id=job.job_id)
        if self._told.on_accepted is not None:
            self._told.on_accepted(job)

    def _priced(self, job: Job) -> ImageRequest:
        request = job.priced()
        return request.model_copy(update={"model": request.model or self._client.model})

    def _tell(self) -> None:
        self._on_progress(
            Progress(
                len(self.ledger.jobs),
                sum(self.ledger.counts[state] for state in DRAWN),
                self.ledger.counts["failed"],
                self.ledger.counts["unknown"],
                len(self._in_flight),
                self.ledger.cost,
                int(self.throttle.allowed),
            )
        )


def _write_image(path: Path, data: bytes) -> str:
    """Write a file whole or not at all, onto the disk; return its digest."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return hashlib.sha256(data).hexdigest()
