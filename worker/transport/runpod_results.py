"""Results on their way to RunPod's platform: none is lost in silence, and no job keeps the worker from the next.

What the SDK (1.12.0) does, and what is done about it here:

- It posts a result that the platform refuses once, logs that, and the job is IN_PROGRESS for ever. Here something
  smaller follows: the same answer with its files in the bucket or on the volume, else an error that says why.
- It gives a platform that fails up after seven seconds. Here it is asked again for a minute.
- It writes a job's id into the headers of its session, where every later request has it. An id that no header can
  hold (a number, a line break) ends all requests, so that no job is ever taken again. Here ids are escaped.
- It writes JSON with Python's own writer, which looks at each character of an image: 18 ms for 6 MB while no other
  thread runs, the engine's among them. Here that takes 3.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from worker.transport.body import written

_LOG = logging.getLogger(__name__)
PAUSES_S = (5.0, 15.0, 40.0)
"""Seconds before a result is posted again to a platform that fails."""
# Refusals that say nothing about the result: the platform is busy, or is told to come later.
_LATER = frozenset({408, 425, 429})

Post = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The platform did not take a body of `size` bytes: with an HTTP `status`, or None if it did not answer."""

    status: int | None
    size: int

    @property
    def for_now(self) -> bool:
        """True if the same body may be taken later."""
        return self.status is None or self.status in _LATER or self.status >= 500


class Substitutes(Protocol):
    """What can be posted instead of the result of the job that this task has run."""

    async def elsewhere(self, job_id: str, refusal: Refusal) -> dict[str, Any] | None:
        """Return the same answer with its files elsewhere, or None if there is no other place."""
        ...

    def error(self, job_id: str, refusal: Refusal) -> dict[str, Any]:
        """Return a small error that says what was refused, and what helps."""
        ...


@dataclass(slots=True)
class _Attempt:
    size: int = 0
    status: int | None = None
    failed: bool = False


_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)
_lost_part: ContextVar[Refusal | None] = ContextVar("lost_part", default=None)


class ResultPoster:
    """Takes the place of the SDK's functions that post results and parts of them. For one SDK, once a process."""

    def __init__(self, substitutes: Substitutes, post_result: Post, post_part: Post) -> None:
        self._substitutes = substitutes
        self._post_result, self._post_part = post_result, post_part

    async def send_result(self, session: Any, job_data: dict[str, Any], job: Mapping[str, Any], **sent: Any) -> None:
        """Post a job's result; if it is refused, what can take its place."""
        job_id = str(job["id"])
        if (lost := _lost_part.get()) is not None:  # a stream without that part would look whole
            job_data = self._error(job_id, lost, job_data)
        refusal = await self._insist(self._post_result, session, job_data, job, **sent)
        if refusal is None:
            return
        _LOG.error("RunPod refused a result of %d bytes: %s", refusal.size, refusal.status or "no answer")
        if not refusal.for_now and "error" not in job_data:
            with suppress(Exception):  # the error below is what must leave
                other = await self._substitutes.elsewhere(job_id, refusal)
                if other is not None:
                    other_data = _kept(job_data, {"output": other})
                    if await self._insist(self._post_result, session, other_data, job, **sent) is None:
                        return
        error = self._error(job_id, refusal, job_data)
        if (last := await self._insist(self._post_result, session, error, job, **sent)) is not None:
            _LOG.error("RunPod refused the error about it too: %s", last.status or "no answer")

    async def send_part(self, session: Any, job_data: dict[str, Any], job: Mapping[str, Any]) -> None:
        """Post a part of a stream. Once one is refused the stream is worth nothing, and the result will say so."""
        if _lost_part.get() is None and (refusal := await self._insist(self._post_part, session, job_data, job)):
            _lost_part.set(refusal)

    def _error(self, job_id: str, refusal: Refusal, job_data: Mapping[str, Any]) -> dict[str, Any]:
        body = self._substitutes.error(job_id, refusal)
        return _kept(job_data, {"error": body.pop("error"), "output": body})

    async def _insist(
        self, post: Post, session: Any, job_data: dict[str, Any], job: Mapping[str, Any], **sent: Any
    ) -> Refusal | None:
        """Post, again and again while that may help. Return the refusal that it ended with."""
        refusal = await _tried(post, session, job_data, job, **sent)
        for pause_s in PAUSES_S:
            if refusal is None or not refusal.for_now:
                break
            await asyncio.sleep(pause_s)
            refusal = await _tried(post, session, job_data, job, **sent)
        return refusal


async def _tried(
    post: Post, session: Any, job_data: dict[str, Any], job: Mapping[str, Any], **sent: Any
) -> Refusal | None:
    attempt = _Attempt()
    token = _attempt.set(attempt)
    try:
        # Escaped, an id is the same in an address, and is fit to be a header.
        await post(session, job_data, {**job, "id": quote(str(job["id"]), safe="", errors="replace")}, **sent)
    except Exception as error:  # not one that the SDK knows of, so that it was not posted
        _LOG.error("a result could not be posted: %s", type(error).__name__)
        attempt.failed = True
    finally:
        _attempt.reset(token)
        session.headers.pop("X-Request-ID", None)
    return Refusal(attempt.status, attempt.size) if attempt.failed else None


def noted(transmit: Callable[[Any, str, str], Awaitable[None]]) -> Callable[[Any, str, str], Awaitable[None]]:
    """Return the SDK's sender of bodies, with its failures noted: the SDK itself only logs them."""

    async def transmit_and_note(session: Any, url: str, body: str) -> None:
        attempt = _attempt.get() or _Attempt()  # none for progress, which is worth no second try
        attempt.size = len(body.encode("utf-8", "replace"))
        try:
            await transmit(session, url, body)
        except Exception as error:
            status = getattr(error, "status", None)
            attempt.failed, attempt.status = True, status if isinstance(status, int) else None
            raise

    return transmit_and_note


def install(substitutes: Substitutes) -> None:
    """Put this between RunPod's SDK and its platform. Another SDK than the one that was read is left as it is."""
    from runpod.serverless.modules import rp_http, rp_job

    try:
        poster = ResultPoster(substitutes, rp_job.send_result, rp_job.stream_result)
        transmit, _ = rp_http._transmit, rp_http.json.dumps
    except AttributeError as error:
        _LOG.warning("refused results stay unanswered: this RunPod SDK has no %s", error.name)
        return
    rp_http._transmit, rp_http.json = noted(transmit), _Json
    rp_job.send_result, rp_job.stream_result = poster.send_result, poster.send_part


class _Json:
    """What the SDK's poster uses of the module json."""

    @staticmethod
    def dumps(value: object, **_: object) -> str:
        return written(value).decode()


def _kept(job_data: Mapping[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """Return `body` with what the SDK itself has added to the result."""
    return body | ({"stopPod": True} if job_data.get("stopPod") else {})
