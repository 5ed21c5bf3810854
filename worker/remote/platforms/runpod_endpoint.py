"""An endpoint of RunPod: its queue by REST, and its load balancer, behind which a worker's own server stands.

Of the queue: `/run` has no idempotency key, so that a job whose hand-in was lost sight of cannot be asked for; it is
handed in again, and what comes of the first is thrown away. `executionTimeout` and `ttl` end every attempt there too.
RunPod's own SDK is not used: its client loses the text of failures, waits for ever on CANCELLED, and blocks.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace

from pydantic import JsonValue
from pydantic_core import from_json

from worker.core.errors import EngineFailure, Unreachable
from worker.core.job import Job
from worker.core.result import Emit, JobResult, Progress
from worker.net.peer import NoAnswer, NotReached, Peer, PeerAnswer
from worker.remote.platforms.outcomes import answered, finished, lost, refusal
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question, input_of
from worker.remote.platforms.under_way import UnderWay
from worker.remote.replica import ReplicaState
from worker.wire.receiving import decode_failure, decode_progress
from worker.wire.sending import encode_body

QUEUE_URL = "https://api.runpod.ai/v2"
BALANCER_URL = "https://{}.api.runpod.ai"
ASK_S = 15.0
ANSWER_S = 60.0
LOST_S = 60.0  # for which the API may be unreachable before its jobs count as lost
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0  # between two looks at a job
LEAST_EXECUTION_S = 5.0  # RunPod's own bound
_UNDER_WAY = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")


class RunPodEndpoint:
    """A queue endpoint. `peer` opens its address, with its key; `attempt_s` bounds the work of one attempt there."""

    def __init__(self, facts: ReplicaState, peer: Peer, attempt_s: float | None = None) -> None:
        self._facts = facts
        self._peer = peer
        self._attempt_s = attempt_s
        self._jobs = UnderWay(self._take_back)  # by their ids there

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self._facts.name

    def state(self) -> ReplicaState:
        """Return the state as it was last observed."""
        return self._facts

    async def observe(self) -> ReplicaState:
        """Ask for the endpoint's workers and jobs, which wakes none of them."""
        try:
            answer = await self._peer.ask("GET", "/health", timeout_s=ASK_S)
        except (NotReached, NoAnswer):
            self._facts = replace(self._facts, health="resting")
            return self._facts
        if answer.status == 429:  # asked too often; nothing is known that is new
            return self._facts
        body = _json(answer)
        jobs, workers = _object(body.get("jobs")), _object(body.get("workers"))
        if answer.status != 200 or not workers:
            self._facts = replace(self._facts, health="resting")
            return self._facts
        running = sum(_count(workers.get(name)) for name in ("idle", "running"))
        self._facts = replace(
            self._facts,
            health="well",
            workers=running,
            can_grow=running == 0 or _count(workers.get("throttled")) == 0,
            warm=running > 0,
            jobs_running=_count(jobs.get("inProgress")),
            jobs_queued=_count(jobs.get("inQueue")),
        )
        return self._facts

    async def send(self, job: Job, key: str, emit: Emit) -> JobResult:
        """Hand `job` in, and ask for it until it is over. See `Platform.send`."""
        async with self._jobs.bracket(job, key):
            id = await self._hand_in(job)
            self._jobs[key] = id
            return finished(self.name, await self._follow(id, emit))

    async def ask(self, question: Question, key: str, emit: Emit) -> Mapping[str, JsonValue]:
        """Hand `question` in, and ask for its answer. See `Platform.ask`."""
        async with self._jobs.bracket(question, key, last=True):
            self._jobs[key] = id = await self._hand_in(question)
            return answered(self.name, await self._follow(id, emit))

    async def reconcile(self, job: Job, key: str, emit: Emit) -> JobResult | None:
        """Ask for `job` by its id there; None if it never had one, or is not known any more."""
        id = self._jobs[key]
        if id is None:
            return None
        async with self._jobs.bracket(job, key, last=True):
            try:
                return finished(self.name, await self._follow(id, emit))
            except (NotTaken, LostSight):
                return None

    async def close(self) -> None:
        """Close all connections, once jobs that were given up are taken back."""
        await self._jobs.close(ASK_S)
        await self._peer.close()

    async def _hand_in(self, job: Job | Question) -> str:
        left_s = min(job.stop.remaining_s, 86_400.0)
        work_s = max(LEAST_EXECUTION_S, min(left_s, self._attempt_s or left_s))
        policy: dict[str, JsonValue] = {
            "executionTimeout": round(work_s * 1_000),
            "ttl": round(max(10.0, left_s + LEAST_EXECUTION_S) * 1_000),
        }
        body = encode_body({"input": input_of(job), "policy": policy})
        try:
            answer = await self._peer.ask("POST", "/run", body, timeout_s=ANSWER_S)
        except NotReached as error:
            raise NotTaken(lost(self.name)) from error
        except NoAnswer as error:
            raise LostSight(lost(self.name)) from error
        fields = _json(answer)
        id = fields.get("id")
        if answer.status in (200, 201) and isinstance(id, str):
            return id
        if answer.status in (502, 504):
            raise LostSight(lost(self.name))
        if answer.status == 404:
            raise NotTaken(Unreachable(f"RunPod knows no endpoint of {self.name}; the operator has to mend it."))
        raise refusal(self.name, decode_failure(dict(fields)), answer.status, answer.retry_after_s)

    async def _follow(self, id: str, emit: Emit) -> Mapping[str, JsonValue]:
        pause_s, since = FIRST_PAUSE_S, 0.0
        newest: Progress | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                outcome = await self._status(id)
                since = 0.0
            except (NotReached, NoAnswer) as error:
                since = since or loop.time()
                if loop.time() - since > LOST_S:
                    raise LostSight(lost(self.name)) from error
                outcome = {"status": "IN_QUEUE"}
            if outcome.get("status") not in _UNDER_WAY:
                return self._end(outcome)
            progress = decode_progress(outcome.get("output"))
            if progress is not None and progress != newest:
                newest = progress
                emit(progress)
                pause_s = FIRST_PAUSE_S  # it moves: the end may be near
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, LONGEST_PAUSE_S)

    async def _status(self, id: str) -> Mapping[str, JsonValue]:
        answer = await self._peer.ask("GET", f"/status/{id}", timeout_s=ANSWER_S)
        if answer.status == 404:
            raise NotTaken(lost(self.name))
        if answer.status == 429:
            await asyncio.sleep(answer.retry_after_s or LONGEST_PAUSE_S)
            return {"status": "IN_QUEUE"}
        if answer.status != 200:
            raise NoAnswer(f"it answers {answer.status}")
        return _json(answer)

    def _end(self, outcome: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        """Return the end of a job that is over. Raises NotTaken where the platform ended it."""
        if outcome.get("status") == "TIMED_OUT":  # its worker was lost or hangs: RunPod has ended the attempt
            raise NotTaken(Unreachable(f"A worker of {self.name} did not finish the job in the time of one attempt."))
        if outcome.get("status") == "COMPLETED" and outcome.get("output") in (None, {}, []):
            raise EngineFailure(
                f"The worker of {self.name} finished the job, and its answer was too large for RunPod; ask for fewer "
                "images or another format, or let the operator give the workers a bucket."
            )
        return {**outcome, "error": _sentence(outcome.get("error"))}

    async def _take_back(self, id: str) -> None:
        with contextlib.suppress(NotReached, NoAnswer):
            await self._peer.ask("POST", f"/cancel/{id}", timeout_s=ASK_S)


def _sentence(error: JsonValue) -> JsonValue:
    """Return the error of a job, without the traceback and host that RunPod's SDK writes into it as JSON."""
    if not isinstance(error, str) or not error.startswith("{"):
        return error
    with contextlib.suppress(ValueError):
        if isinstance(json.loads(error), dict):
            return "The worker failed at the job."
    return error


def _json(answer: PeerAnswer) -> Mapping[str, JsonValue]:
    try:
        return _object(from_json(answer.body))
    except ValueError:
        return {}


def _object(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _count(value: JsonValue) -> int:
    return value if isinstance(value, int) and value > 0 else 0
