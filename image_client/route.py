"""The way to one provider and back.

submit ─▶ the images at once ─────────────────────▶ fetch what is behind links ─▶ images
      └─▶ a job, asked for by its id until it is done ─┘
"""

import asyncio
from decimal import Decimal
from urllib.parse import urlsplit

from image_client.collection import Collector
from image_client.errors import ImageClientError, InvalidRequest, ResultLost, Unsupported
from image_client.image import Image
from image_client.job import ProviderJob
from image_client.options import ClientOptions
from image_client.pacing import now
from image_client.providers.answers import media_type_of, seed_of
from image_client.providers.fitting import fitted
from image_client.providers.provider import Call, File, Finished, Link, Provider, Running
from image_client.request import ImageRequest
from image_client.submission import Submitter
from image_client.transport import LinkBroken, LinkExpired, Transport

RENEWALS = 3
CANCEL_SECONDS = 10.0


class Route:
    """One provider with its token, its pace and its breaker. Belongs to one event loop."""

    def __init__(
        self, provider: Provider, *, token: str | None, base_url: str, model: str, options: ClientOptions
    ) -> None:
        self.provider, self.model, self.base_url = provider, model, base_url
        self._token, self._options = token, options
        limit = int(options.max_image_mb * 2**20)
        self._transport = Transport(base_url, concurrency=options.concurrency, max_image_bytes=limit)
        self._slots = asyncio.Semaphore(options.concurrency)
        self._submitter = Submitter(provider, self._transport, options)
        self._collector = Collector(provider, self._transport, options)

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.close()

    def fit(self, request: ImageRequest, request_id: str) -> tuple[Call, tuple[str, ...]]:
        """Return the call as it will be made, and how it was adapted. Raises Unsupported."""
        model = request.model or self.model
        abilities = self.provider.abilities(model, self.base_url)
        if request.seed is None and "seed" in abilities.fields:
            seed = seed_of(request_id) % (abilities.max_seed + 1)
            request = request.model_copy(update={"seed": seed})
        asked, adapted = fitted(request, abilities, self.provider.name, self._options.fit)
        return Call(asked, model, self.base_url, self._token, request_id), adapted

    async def images(self, request: ImageRequest, request_id: str, *, patient: bool) -> tuple[Image, ...]:
        """Return the images of a request. Not `patient`, it gives up early on a provider that is busy or away."""
        try:
            call, adapted = self.fit(request, request_id)
            async with self._slots:
                began = now()
                deadline = began + self._options.deadline
                outcome = await self._submitter.submit(call, deadline, patient=patient)
                job = self._taken(outcome, call, adapted) if isinstance(outcome, Running) else None
                files, finished = await self._delivered(outcome, job, call, deadline)
                return self._images(files, finished, call, adapted, now() - began)
        except ImageClientError as error:
            error.provider, error.request_id = self.provider.name, request_id
            raise

    async def collect(self, job: ProviderJob) -> tuple[Image, ...]:
        """Return the images of a job that was taken earlier."""
        call, running = self._taken_earlier(job)
        try:
            async with self._slots:
                began = now()
                files, finished = await self._delivered(running, job, call, began + self._options.deadline)
                return self._images(files, finished, call, job.adapted, now() - began)
        except ImageClientError as error:
            error.provider, error.request_id = self.provider.name, job.request_id
            raise

    async def cancel(self, job: ProviderJob) -> None:
        """Take a job back. It is asked for once; Unsupported where this provider does not let jobs be taken back."""
        if self.provider.cancel is None:
            raise Unsupported(f"{self.provider.name} does not let jobs be taken back.", field="job")
        call, running = self._taken_earlier(job)
        request = self.provider.cancel(call, running)
        await self._transport.send(request, first_byte=CANCEL_SECONDS, deadline=now() + CANCEL_SECONDS)

    async def find(self, request: ImageRequest, request_id: str) -> ProviderJob | None:
        """Return the provider's job of a request that was sent and never answered; None where there is none."""
        if self.provider.search is None:
            raise Unsupported(f"{self.provider.name} has no list of jobs to look in.", field="request_id")
        call, adapted = self.fit(request, request_id)
        running = await self._submitter.search(call, now() + self._options.deadline)
        return self._job(running, call, adapted) if running else None

    def _taken_earlier(self, job: ProviderJob) -> tuple[Call, Running]:
        """Return what asks for a job. Raises InvalidRequest for one that lies at another address."""
        if _origin(job.poll_url) != _origin(self.base_url):
            raise InvalidRequest(f"poll_url is not of {self.provider.name}'s own address; its token is not sent there.")
        asked = ImageRequest(prompt="(collected)", seed=job.seed)
        call = Call(asked, job.model or self.model, self.base_url, self._token, job.request_id)
        return call, Running(job.job_id, job.poll_url, at_once=True)

    async def _delivered(
        self, outcome: Finished | Running, job: ProviderJob | None, call: Call, deadline: float
    ) -> tuple[list[bytes], Finished]:
        """Return the files of a job; where a link is served no more another is asked for, a few times."""
        tried: list[tuple[File | Link, ...]] = []
        while True:
            if isinstance(outcome, Running):
                job = job or self._job(outcome, call, ())
                outcome = await self._collector.finish(outcome, job, call, deadline)
            try:
                return [await self._collector.file(item, deadline) for item in outcome.files], outcome
            except ResultLost as error:
                error.job = job
                again = job is not None or self.provider.idempotent
                useless = job is not None and outcome.files in tried  # the job has no other link
                passing = isinstance(error, LinkExpired | LinkBroken)
                if not (again and passing) or useless or len(tried) == RENEWALS:
                    raise
                tried.append(outcome.files)
            if job is not None:
                outcome = Running(job.job_id, job.poll_url, at_once=True)
            else:  # under the same id: nothing is drawn twice
                outcome = await self._submitter.submit(call, deadline)

    def _taken(self, running: Running, call: Call, adapted: tuple[str, ...]) -> ProviderJob:
        self._submitter.heard.add(running.job_id)
        job = self._job(running, call, adapted)
        if self._options.on_accepted is not None:
            self._options.on_accepted(job)
        return job

    def _job(self, running: Running, call: Call, adapted: tuple[str, ...]) -> ProviderJob:
        return ProviderJob(
            provider=self.provider.name,
            job_id=running.job_id,
            poll_url=running.poll_url,
            request_id=call.request_id,
            model=call.model or None,
            seed=call.request.seed,
            adapted=adapted,
        )

    def _images(
        self, files: list[bytes], finished: Finished, call: Call, adapted: tuple[str, ...], seconds: float
    ) -> tuple[Image, ...]:
        cost = self._cost(finished, call, seconds)
        return tuple(
            Image(
                data=data,
                media_type=media_type_of(data) or "",
                provider=self.provider.name,
                model=finished.model or call.model or None,
                version=finished.version,
                seed=item.seed,
                cost=cost,
                seconds=round(seconds, 3),
                request_id=call.request_id,
                job_id=finished.job_id,
                adapted=adapted,
                raw=finished.raw,
            )
            for data, item in zip(files, finished.files, strict=True)
        )

    def _cost(self, finished: Finished, call: Call, seconds: float) -> Decimal | None:
        """Return what one image costs: as the provider says, else as the caller's prices do."""
        if finished.cost is not None:
            return finished.cost / len(finished.files)
        if self._options.price is None:
            return None
        priced = call.request.model_copy(update={"model": call.model or None})
        return self._options.price(self.provider.name, priced, seconds)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
