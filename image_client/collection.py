"""Fetching what a provider has: asking for a job until it is done, and the files behind its links."""

import asyncio
from dataclasses import replace

from image_client.errors import (
    GenerationFailed,
    NotFinished,
    ProviderUnavailable,
    ResultLost,
    UnknownOutcome,
)
from image_client.job import ProviderJob
from image_client.options import ClientOptions
from image_client.pacing import backoff, pause
from image_client.providers.answers import retry_after, words_of
from image_client.providers.provider import Call, File, Finished, HttpAnswer, HttpRequest, Link, Provider, Running
from image_client.transport import LinkBroken, Transport, whole_image

LINK_ATTEMPTS = 4
LONGEST_POLL = 5.0
SLOWER = 1.3  # each question about a job waits so many times longer than the one before


class Collector:
    """Asks one provider for jobs and fetches their images."""

    def __init__(self, provider: Provider, transport: Transport, options: ClientOptions) -> None:
        self._provider, self._transport, self._options = provider, transport, options

    async def finish(self, running: Running, job: ProviderJob, call: Call, deadline: float) -> Finished:
        """Ask for a job until it is done. Raises Accepted, or NotSent where the job was never drawn."""
        wait, failures = self._provider.poll, 0
        while True:
            if not running.at_once:
                await pause(wait, deadline, NotFinished("The deadline passed; the job still runs.", job=job))
            answer = await self._ask(running, call, deadline)
            outcome = self._read(answer, running, job, call) if answer else None
            if isinstance(outcome, Finished):
                return outcome
            if outcome is None:
                failures += 1
                told = retry_after(answer.headers) if answer else None
                wait, running = backoff(failures) if told is None else told, replace(running, at_once=False)
            else:
                failures, running, wait = 0, outcome, min(LONGEST_POLL, wait * SLOWER)

    async def file(self, item: File | Link, deadline: float) -> bytes:
        """Return an image, whole. Raises ResultLost."""
        if isinstance(item, File):
            return whole_image(item.data)
        number = 1
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._transport.fetch(item.url)
            except LinkBroken as error:
                if number == LINK_ATTEMPTS:
                    raise
                await pause(backoff(number), deadline, error)
                number += 1
            except TimeoutError:
                raise LinkBroken("The deadline passed while the image was fetched.") from None

    async def _ask(self, running: Running, call: Call, deadline: float) -> HttpAnswer | None:
        """Return the answer to one question about a job, None where there was none: a question may be asked again."""
        headers = {"Authorization": f"{self._provider.scheme} {call.token}"} if call.token else {}
        request = HttpRequest("GET", running.poll_url, headers)
        first_byte = self._options.first_byte or self._provider.first_byte
        try:
            return await self._transport.send(request, first_byte=first_byte, deadline=deadline, images=call.request.n)
        except (ProviderUnavailable, UnknownOutcome):
            return None

    def _read(self, answer: HttpAnswer, running: Running, job: ProviderJob, call: Call) -> Finished | Running | None:
        """Return what an answer says of the job, None where it says nothing for now."""
        status = answer.status
        if status in (408, 425, 429) or status >= 500:
            return None
        if status in (401, 403):
            raise NotFinished(f"The provider does not let this token ask for the job: {words_of(answer)}", job=job)
        if status in (404, 410):
            raise ResultLost(f"The provider no longer knows the job: {words_of(answer)}", job=job)
        if status >= 300:
            raise GenerationFailed(f"The job failed: {words_of(answer)}", job=job)
        try:
            return self._provider.parse(answer, replace(call, job=running))
        except UnknownOutcome:
            return None
        except GenerationFailed as error:
            error.job = job
            raise
