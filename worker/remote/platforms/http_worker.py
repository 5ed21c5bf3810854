"""A worker over HTTP: the job is handed in under its key, and followed by its id to its end.

The same key at the same worker is the same job, so that a job of which nobody knows whether it arrived can be handed in
once more. A worker whose process ended knows none of its jobs: it says so, or nobody listens there any more.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pydantic import JsonValue
from pydantic_core import from_json

from worker.core.errors import Unreachable
from worker.core.job import Job
from worker.core.result import Emit, JobResult
from worker.net.peer import NoAnswer, NotReached, Peer, PeerAnswer
from worker.remote.platforms.outcomes import answered, finished, lost, refusal
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question, input_of
from worker.remote.platforms.under_way import UnderWay
from worker.remote.replica import ReplicaState
from worker.wire.receiving import decode_failure, decode_progress
from worker.wire.sending import encode_body

ASK_S = 15.0  # for an answer that holds no image
ANSWER_S = 60.0  # for one that may
SILENCE_S = 40.0  # of events: a worker says something every 15 seconds
LOST_S = 15.0  # for which a worker may be unreachable before its jobs count as lost
PAUSE_S = 0.25
# With it RunPod's load balancer sends a request to the worker that has the job.
AFFINITY = "X-Runpod-Worker-Id"
_API = "/v2/gateway"
_UNDER_WAY = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")


class HttpWorker:
    """A worker's own HTTP server. `facts` are the operator's; for one event loop."""

    def __init__(self, facts: ReplicaState, peer: Peer, clock: Callable[[], float] = time.monotonic) -> None:
        self._facts = facts
        self._peer = peer
        self._clock = clock
        self._jobs = UnderWay(self._take_back)

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self._facts.name

    def state(self) -> ReplicaState:
        """Return the state as it was last observed."""
        return self._facts

    async def observe(self) -> ReplicaState:
        """Ask the worker what it does."""
        try:
            answer = await self._peer.ask("GET", "/health", timeout_s=ASK_S)
            body = from_json(answer.body)
        except (NotReached, NoAnswer, ValueError):
            self._facts = replace(self._facts, health="resting", resident=frozenset())
            return self._facts
        if answer.status != 200 or not isinstance(body, dict):
            self._facts = replace(self._facts, health="resting")
            return self._facts
        jobs, resident = body.get("jobs"), body.get("resident_models")
        volume = body.get("volume_id")
        counts: Mapping[str, JsonValue] = jobs if isinstance(jobs, dict) else {}
        self._facts = replace(
            self._facts,
            health="well",
            warm=body.get("status") != "starting",
            resident=frozenset(map(str, resident)) if isinstance(resident, list) else frozenset(),
            volume_id=volume if isinstance(volume, str) else None,
            jobs_running=_count(counts.get("running")),
            jobs_queued=_count(counts.get("queued")),
        )
        return self._facts

    async def send(self, job: Job, key: str, emit: Emit) -> JobResult:
        """Hand `job` in, and follow it. See `Platform.send`."""
        async with self._jobs.bracket(job, key):
            return finished(self.name, await self._follow(await self._hand_in(job, key), emit))

    async def ask(self, question: Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Hand `question` in, and follow it. See `Platform.ask`."""
        async with self._jobs.bracket(question, key, last=True):
            there = await self._hand_in(question, key)
            return answered(self.name, await self._follow(there, emit))

    async def reconcile(self, job: Job, key: str, emit: Emit) -> JobResult | None:
        """Ask for `job` until the worker answers, or counts as lost. See `Platform.reconcile`."""
        async with self._jobs.bracket(job, key, last=True):
            given_up = self._clock() + LOST_S
            refusals = 0
            while self._clock() < given_up and refusals < 3:
                try:
                    there = self._jobs[key] or await self._hand_in(job, key)
                    return finished(self.name, await self._follow(there, emit))
                except NotTaken as failure:
                    unreached = failure.__cause__
                    if not isinstance(unreached, NotReached):
                        return None
                    refusals += unreached.refused  # no process is left that could have the job
                except LostSight:
                    pass
                await asyncio.sleep(PAUSE_S)
            return None

    async def admin(
        self, method: str, path: str, body: Mapping[str, JsonValue] | None = None, timeout_s: float = ASK_S
    ) -> dict[str, JsonValue]:
        """Ask below the worker's /admin, and return the answer. Raises Unreachable, and its own WorkerError."""
        sent = None if body is None else encode_body(body)
        try:
            answer = await self._peer.ask(method, f"/admin{path}", sent, timeout_s=timeout_s)
        except (NotReached, NoAnswer) as error:
            raise lost(self.name) from error
        if answer.status == 200:
            return dict(_json(answer))
        if answer.status in (401, 403):
            text = "refuses this gateway's key; name one of its admin keys as its key in fleet.yaml."
            raise Unreachable(f"The worker {self.name} {text}")
        raise decode_failure(dict(_json(answer)))

    async def close(self) -> None:
        """Close all connections, once jobs that were given up are taken back."""
        await self._jobs.close(ASK_S)
        await self._peer.close()

    async def _hand_in(self, job: Job | Question, key: str) -> "_There":
        """Hand `job` in and return where it is. Raises WorkerError, NotTaken, LostSight."""
        ttl_ms = round((min(job.stop.remaining_s, 86_400.0) + ANSWER_S) * 1_000)
        body = encode_body({"input": input_of(job), "policy": {"ttl": ttl_ms}})
        try:
            answer = await self._peer.ask(
                "POST", f"{_API}/run", body, headers={"Idempotency-Key": key, **_named(job)}, timeout_s=ANSWER_S
            )
        except NotReached as error:
            raise NotTaken(lost(self.name)) from error
        except NoAnswer as error:
            raise LostSight(lost(self.name)) from error
        fields = _json(answer)
        id = fields.get("id")
        if answer.status == 200 and isinstance(id, str):
            worker = answer.headers.get(AFFINITY.lower())
            self._jobs[key] = there = _There(id, {} if worker is None else {AFFINITY: worker})
            return there
        raise self._refused(answer, fields)

    def _refused(self, answer: PeerAnswer, fields: Mapping[str, JsonValue]) -> Exception:
        if answer.status in (502, 504) or answer.status == 200:  # of a proxy, which does not know either
            return LostSight(lost(self.name))
        return refusal(self.name, decode_failure(dict(fields)), answer.status, answer.retry_after_s)

    async def _follow(self, there: "_There", emit: Emit) -> Mapping[str, JsonValue]:
        """Follow the job to its end, and return that: by its events, and where these break off by asking for it."""
        since: float | None = None
        while True:
            try:
                outcome = await self._events(there, emit)
                if outcome is None:
                    outcome = await self._status(there)
            except (NotReached, NoAnswer) as error:
                since = since or self._clock()
                if (isinstance(error, NotReached) and error.refused) or self._clock() - since > LOST_S:
                    raise LostSight(lost(self.name)) from error
                await asyncio.sleep(PAUSE_S)
                continue
            since = None
            if outcome.get("status") not in _UNDER_WAY:
                return outcome
            await asyncio.sleep(PAUSE_S)

    async def _events(self, there: "_There", emit: Emit) -> Mapping[str, JsonValue] | None:
        """Report progress until the job is over, and return its end; None where the stream ends without one."""
        outcome: Mapping[str, JsonValue] | None = None
        events = self._peer.events(f"/events/{there.id}", headers=there.headers, silence_s=SILENCE_S)
        async with events as (status, blocks):
            if status == 404:
                raise NotTaken(lost(self.name))  # its process is another one by now
            if status != 200:
                return None
            async for head, text in blocks:
                kind, data = _event(head, text)
                if kind == "progress" and (progress := decode_progress(data)) is not None:
                    emit(progress)
                elif kind in ("result", "failed") and isinstance(data, dict):
                    outcome = data  # the stream ends here, and its connection can be used again
        return outcome

    async def _status(self, there: "_There") -> Mapping[str, JsonValue]:
        answer = await self._peer.ask("GET", f"{_API}/status/{there.id}", headers=there.headers, timeout_s=ANSWER_S)
        if answer.status == 404:
            raise NotTaken(lost(self.name))
        if answer.status != 200:
            raise NoAnswer(f"it answers {answer.status}")
        return _json(answer)

    async def _take_back(self, there: "_There") -> None:
        with contextlib.suppress(NotReached, NoAnswer):
            await self._peer.ask("POST", f"{_API}/cancel/{there.id}", headers=there.headers, timeout_s=ASK_S)


@dataclass(frozen=True, slots=True)
class _There:
    """Where a job is: its id there, and the header by which the worker that has it is found again."""

    id: str
    headers: Mapping[str, str]


def _named(job: Job | Question) -> Mapping[str, str]:
    """Return the header by which both usage logs know the job: the worker's has our id of it as its request's."""
    return {"X-Request-ID": job.id} if job.id.isascii() and job.id.isprintable() else {}


def _event(head: bytes, text: bytes) -> tuple[str, JsonValue]:
    """Return an event's name, and its data as JSON; an empty name for a comment."""
    _, _, name = head.partition(b"event: ")
    try:
        return name.strip().decode("ascii", "replace"), from_json(text) if name else None
    except ValueError:
        return "", None


def _json(answer: PeerAnswer) -> Mapping[str, JsonValue]:
    try:
        body = from_json(answer.body)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _count(value: JsonValue) -> int:
    return value if isinstance(value, int) and value > 0 else 0
