"""Putting a request to its provider: paced, tried again where it cannot have run, and never twice where it may have.

What is unknown is sent again only under the same id, to a provider that draws an id once. Elsewhere the provider's list
of jobs is searched; what is not found there stays unknown.
"""

import asyncio

from image_client.errors import (
    Accepted,
    ImageClientError,
    NotSent,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    UnknownOutcome,
)
from image_client.options import Attempt, ClientOptions, Outcome
from image_client.pacing import Breaker, BreakerOpen, Pacer, backoff, pause
from image_client.providers.provider import Call, Finished, HttpRequest, Provider, Running
from image_client.transport import Transport

IMPATIENT_ATTEMPTS, IMPATIENT_WAIT = 2, 5.0  # where another provider stands by
SEARCHES, SEARCH_PAUSE = 3, 2.0


class Submitter:
    """Sends requests to one provider, at its pace."""

    def __init__(self, provider: Provider, transport: Transport, options: ClientOptions) -> None:
        self._provider, self._transport, self._options = provider, transport, options
        self._pacer, self._breaker = Pacer(provider.pace, provider.name), Breaker(provider.name)
        self.heard: set[str] = set()  # ids of jobs that are accounted for

    async def submit(self, call: Call, deadline: float, *, patient: bool = True) -> Finished | Running:
        """Return the images, or the job that was taken. Not `patient`, it gives up early on a busy provider."""
        prepared = self._provider.prepare(call)
        unknown: UnknownOutcome | None = None
        final: ImageClientError
        number = 1
        while True:
            try:
                outcome = await self._attempt(prepared, call, deadline)
            except BreakerOpen as error:
                final, wait, last = unknown or error, error.retry_after or 1.0, not patient
            except (RateLimited, ProviderUnavailable, UnknownOutcome) as error:
                if isinstance(error, UnknownOutcome):
                    unknown = error
                    if not self._provider.idempotent:
                        return await self._reconciled(call, number, deadline, error)
                final, wait = unknown or error, self._wait_after(error, number)
                last = self._is_last(number, wait, patient=patient)
                self._tell(call, number, error, None if last else wait)
                number += 1
            except ImageClientError as error:
                self._tell(call, number, error)
                if unknown is not None and isinstance(error, NotSent):
                    raise unknown from error  # an earlier attempt may have run all the same
                raise
            else:
                self._tell(call, number, outcome)
                return outcome
            if last:
                raise final
            await pause(wait, deadline, final)

    async def search(self, call: Call, deadline: float) -> Running | None:
        """Look for the job of a call that was not answered in the provider's list of jobs."""
        if self._provider.search is None or self._provider.found is None:
            return None
        request = self._provider.search(call)
        for number in range(SEARCHES):
            if number:
                await asyncio.sleep(SEARCH_PAUSE)  # a list may show a job late
            try:
                answer = await self._transport.send(request, first_byte=self._first_byte, deadline=deadline, images=10)
                running = self._provider.found(answer, call, frozenset(self.heard))
            except ImageClientError:
                continue
            if running is not None:
                self.heard.add(running.job_id)
                return running
        return None

    @property
    def _first_byte(self) -> float:
        return self._options.first_byte or self._provider.first_byte

    async def _attempt(self, prepared: HttpRequest, call: Call, deadline: float) -> Finished | Running:
        await self._pacer.turn(deadline)
        self._breaker.enter()
        try:
            answer = await self._transport.send(
                prepared, first_byte=self._first_byte, deadline=deadline, images=call.request.n
            )
            outcome = self._provider.parse(answer, call)
        except (UnknownOutcome, ProviderUnavailable):
            self._breaker.failed()
            raise
        except ImageClientError:
            self._breaker.well()
            raise
        except BaseException:
            self._breaker.left()
            raise
        self._breaker.well()
        return outcome

    async def _reconciled(self, call: Call, number: int, deadline: float, error: UnknownOutcome) -> Running:
        self._tell(call, number, error)
        running = await self.search(call, deadline)
        if running is None:
            raise error
        return running

    def _wait_after(self, error: ImageClientError, number: int) -> float:
        told = error.retry_after if isinstance(error, RateLimited | ProviderUnavailable) else None
        if not isinstance(error, RateLimited):
            return backoff(number) if told is None else told
        wait = max(self._provider.pace.lockout, backoff(number)) if told is None else told
        self._pacer.hold(wait)  # for everybody: others would be refused too
        return wait

    def _is_last(self, number: int, wait: float, *, patient: bool) -> bool:
        if patient:
            return number >= self._options.attempts
        return number >= min(IMPATIENT_ATTEMPTS, self._options.attempts) or wait > IMPATIENT_WAIT

    def _tell(
        self, call: Call, number: int, outcome: Finished | Running | ImageClientError, wait: float | None = None
    ) -> None:
        if self._options.on_attempt is not None:
            status = outcome.status if isinstance(outcome, ImageClientError) else 200
            told = Attempt(call.request_id, self._provider.name, number, _word(outcome), status, wait)
            self._options.on_attempt(told)


def _word(outcome: Finished | Running | ImageClientError) -> Outcome:
    words: tuple[tuple[type, Outcome], ...] = (
        (Finished, "image"),
        (Running, "accepted"),
        (RateLimited, "rate_limited"),
        (ProviderUnavailable, "unavailable"),
        (RequestRefused, "refused"),
        (NotSent, "refused"),
        (Accepted, "failed"),
    )
    return next((word for kind, word in words if isinstance(outcome, kind)), "unknown")
