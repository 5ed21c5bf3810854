"""A model at a hosted provider, by image_client: where a gateway overflows to, as far as its operator pays.

Nothing is sent that could not be paid: the price is reserved first, and settled by what became of the job. image_client
says of each failure whether the job can have run; what may have is asked for by its id, or sent again only under the
same id to a provider that draws an id once.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from image_client.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContentRefused,
    GenerationFailed,
    ImageClientError,
    NotSent,
    PaymentRequired,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    ResultLost,
    Unsupported,
)
from image_client.image import Image
from image_client.job import ProviderJob
from image_client.options import ClientOptions
from image_client.providers.table import PROVIDERS
from image_client.request import ImageRequest
from image_client.route import Route
from worker.core.errors import EngineFailure, InvalidOutput, InvalidRequest, Overloaded, Unreachable, UnsupportedModel
from worker.core.job import Job
from worker.core.result import Emit, JobResult
from worker.remote.fleet_schema import ReplicaEntry
from worker.remote.platforms.hosted_request import Hosted, request_for, result_of, size_of
from worker.remote.platforms.hosted_spending import HostedPrice, OverLimit, Reservation, Spending
from worker.remote.platforms.outcomes import lost
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question
from worker.remote.platforms.under_way import UnderWay
from worker.remote.replica import ReplicaState

_DEADLINE_S = 86_400.0  # of the client; each job's own is kept by the bracket around it
_NEWEST = 0.3  # the weight of the last measurement in a running mean
_FAREWELL_S = 15.0
_THREADS = 2
T = TypeVar("T")


@dataclass(slots=True)
class _Asked:
    """A job that the provider may have, and the money for it. `job` is the provider's id, once it is known."""

    hosted: Hosted
    request: ImageRequest
    warnings: Sequence[str]
    money: Reservation
    job: ProviderJob | None = None


def open_provider(
    facts: ReplicaState, models: Mapping[str, str], entry: ReplicaEntry, spending: Path, token: str | None
) -> "HostedProvider":
    """Return the provider of an entry of fleet.yaml. Raises ValueError for a model that it does not have."""
    dollars = (entry.usd_per_image, entry.usd_per_megapixel, entry.max_usd_per_image, entry.max_usd_per_day)
    price = HostedPrice(*(Decimal(str(amount or 0)) for amount in dollars))
    money = Spending(spending, facts.name, price)
    try:
        return HostedProvider(facts, models, money, entry.provider or "", token=token, base_url=entry.url)
    except Unsupported as error:
        raise ValueError(error.message) from None


class HostedProvider:
    """One provider. `models` are its words for ours; `facts` are the operator's; for one event loop.

    Raises image_client's Unsupported for a model that the provider does not have.
    """

    def __init__(
        self,
        facts: ReplicaState,
        models: Mapping[str, str],
        spending: Spending,
        provider: str,
        *,
        token: str | None = None,
        base_url: str | None = None,
    ) -> None:
        row = PROVIDERS[provider]
        self._facts = facts
        self._spending = spending
        address = base_url or row.base_url or ""
        self._models = {name: Hosted.of(facts.name, row, model, address) for name, model in models.items()}
        options = ClientOptions(deadline=_DEADLINE_S, attempts=1, concurrency=1_000, on_accepted=self._has_taken)
        self._route = Route(row, token=token, base_url=address, model="", options=options)
        self._jobs = UnderWay(self._take_back)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"hosted-{facts.name}")

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self._facts.name

    def state(self) -> ReplicaState:
        """Return the state as it was last observed."""
        return self._facts

    async def observe(self) -> ReplicaState:
        """Look up what may still be spent today. The provider itself is not asked."""
        try:
            left = await self._apart(self._spending.left)
        except (OSError, sqlite3.Error):
            self._facts = replace(self._facts, health="resting", usd_left=0.0)
        else:
            self._facts = replace(self._facts, health="well", usd_left=float(left))
        return self._facts

    async def send(self, job: Job, key: str, emit: Emit) -> JobResult:
        """Have `job` drawn there, once its price is reserved. See `Platform.send`."""
        hosted = self._models[job.call.spec.id]
        async with self._jobs.bracket(job, key):
            try:
                request, warnings = await self._apart(request_for, hosted, job)
            except InvalidRequest as error:
                raise NotTaken(error, ill=False) from error
            money = await self._reserved(hosted, request, job)
            asked = self._jobs[key] = _Asked(hosted, request, warnings, money)
            return await self._drawn(asked, job, lambda: self._route.images(request, key, patient=False))

    async def ask(self, question: Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Refuse: a provider only generates."""
        raise UnsupportedModel(f"{self.name} is a provider, which generates and answers nothing else.", field="action")

    async def reconcile(self, job: Job, key: str, emit: Emit) -> JobResult | None:
        """Ask for `job` by its id there, or under its key where a key is drawn once. See `Platform.reconcile`."""
        asked = self._jobs[key]
        if asked is None:
            return None
        async with self._jobs.bracket(job, key, last=True):
            taken = asked.job
            if taken is not None:
                return await self._drawn(asked, job, lambda: self._route.collect(taken))
            if not self._route.provider.idempotent:
                raise LostSight(lost(self.name))
            return await self._drawn(
                asked, job, lambda: self._route.images(asked.request, key, patient=False), again=True
            )

    async def close(self) -> None:
        """Close all connections, once jobs that were given up are taken back."""
        await self._jobs.close(_FAREWELL_S)
        await self._route.close()
        self._threads.shutdown(wait=False)

    async def _apart(self, work: Callable[..., T], *what: object) -> T:
        """Run what blocks in a thread of the provider's own."""
        return await asyncio.wrap_future(self._threads.submit(copy_context().run, work, *what))

    async def _reserved(self, hosted: Hosted, request: ImageRequest, job: Job) -> Reservation:
        size = size_of(request, job)
        try:
            money = await self._apart(self._spending.reserve, hosted.provider.name, hosted.model, request.n, size)
        except OverLimit as error:
            raise NotTaken(Overloaded(str(error)), ill=False) from error
        except (OSError, sqlite3.Error) as error:
            text = f"What {self.name} is paid cannot be written down, so nothing is sent there; look at VOLUME_DIR."
            raise NotTaken(Unreachable(text)) from error
        finally:
            await self.observe()
        return money

    async def _drawn(
        self, asked: _Asked, job: Job, ask: Callable[[], Awaitable[tuple[Image, ...]]], *, again: bool = False
    ) -> JobResult:
        """Return the result, and settle what it cost. `again`: the job may have run already. NotTaken, LostSight."""
        try:
            images = await ask()
        except ImageClientError as error:
            if again and isinstance(error, NotSent):  # this time; of the first nobody knows
                raise LostSight(lost(self.name)) from error
            await self._account(asked.money, error)
            raise self._meaning(error) from error
        except asyncio.CancelledError:
            await asyncio.shield(self._note(self._spending.doubt, asked.money))
            raise
        told = [image.cost for image in images if image.cost is not None]
        dollars = sum(told, Decimal(0)) if len(told) == len(images) else asked.money.each * len(images)
        seconds = max(image.seconds for image in images)
        await self._note(self._spending.settle, asked.money, dollars, seconds)
        mean = self._facts.answers_in_s
        mean = seconds if mean is None else mean + _NEWEST * (seconds - mean)
        self._facts = replace(self._facts, answers_in_s=mean)
        try:
            return result_of(job, asked.hosted, asked.request, images, asked.warnings, usd=float(dollars))
        except InvalidOutput as error:
            raise NotTaken(error) from error

    async def _account(self, money: Reservation, error: ImageClientError) -> None:
        """Settle what did not become an image. What cannot have run is free, and so is what failed: images are sold."""
        if isinstance(error, ContentFiltered | ResultLost):
            await self._note(self._spending.settle, money, money.each * money.images, None)
        elif isinstance(error, NotSent | GenerationFailed):
            await self._note(self._spending.release, money)
        else:
            await self._note(self._spending.doubt, money)

    async def _note(self, write: Callable[..., None], *what: object) -> None:
        """Write into the book. Where that fails the reservation goes on counting, and the job's end is what it is."""
        with suppress(OSError, sqlite3.Error):
            await self._apart(write, *what)
        await self.observe()

    def _meaning(self, error: ImageClientError) -> Exception:
        """Return what a failure there means for the job here."""
        name = self.name
        match error:
            case AuthenticationFailed() | PaymentRequired():
                what = "refuses this gateway's key" if isinstance(error, AuthenticationFailed) else "has no credit left"
                return NotTaken(Unreachable(f"{name} {what}; the operator has to mend it."))
            case RateLimited():
                text = f"{name} takes no more jobs now; come again later."
                return NotTaken(Overloaded(text), retry_after_s=error.retry_after, ill=False)
            case ProviderUnavailable():
                return NotTaken(lost(name), retry_after_s=error.retry_after)
            case ContentRefused() | RequestRefused():
                field = "prompt" if isinstance(error, ContentRefused) else None
                return NotTaken(InvalidRequest(f"{name} refuses the job: {error.message}", field=field), ill=False)
            case NotSent():
                return NotTaken(InvalidRequest(f"{name} cannot take the job: {error.message}"), ill=False)
            case ContentFiltered():
                return NotTaken(InvalidOutput(f"{name} withheld the image: {error.message}"), ill=False)
            case GenerationFailed() | ResultLost():
                return NotTaken(EngineFailure(f"{name} failed at the job: {error.message}"))
        return LostSight(lost(name))

    def _has_taken(self, job: ProviderJob) -> None:
        if (asked := self._jobs[job.request_id]) is not None:
            asked.job = job

    async def _take_back(self, asked: _Asked) -> None:
        if asked.job is not None:
            with suppress(ImageClientError):  # one that cannot be taken back is drawn to its end
                await self._route.cancel(asked.job)
