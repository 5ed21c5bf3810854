"""The backend of a gateway: each job goes to the replica that will have it done soonest and cheapest.

A job that is not taken goes to the next one at once. One that was lost sight of is asked for by its key before anybody
else gets it. Nothing is sent to two replicas at the same time, and a job has one answer.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from worker.core.errors import OutOfMemory, Overloaded, Unreachable, UnsupportedModel, WorkerError
from worker.core.job import Job
from worker.core.result import Emit, JobResult, Placement, Progress
from worker.remote.line import Line, Place
from worker.remote.members import Member, Members
from worker.remote.placement import larger_than, place, refusals
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.replica import Choice, Needs, ReplicaState
from worker.wire.sending import request_key

MOST_ATTEMPTS = 6
PATIENCE_S = 30.0  # for which a job waits while every replica that could have it rests
_LOOK_AGAIN_S = 1.0

NeedsOf = Callable[[Job, float], Needs]


@dataclass(slots=True)
class _Way:
    """One job's way: where it was, and what was said there."""

    job: Job
    key: str
    emit: Emit
    attempts: int = 0
    tried: set[str] = field(default_factory=set)  # since every replica was last tried
    unable: set[str] = field(default_factory=set)  # they cannot do this job, whenever they are asked
    larger_than: str | None = None  # the replica that ran out of memory
    past: list[str] = field(default_factory=list)
    failure: WorkerError | None = None
    waits_since: float | None = None


class RemoteBackend:
    """Answers jobs by having them generated elsewhere. `needs_of` knows what a job of so many seconds needs."""

    def __init__(self, members: Members, needs_of: NeedsOf) -> None:
        self._members = members
        self._needs_of = needs_of
        self._line = Line()

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Have `job` generated."""
        way = _Way(job, request_key(job), emit)
        while True:
            with self._line.waiting(job.call.spec.id) as place:
                choice, member = await self._turn(way, place)
            self._line.sent(job.call.spec.id, choice)
            result = await self._attempt(way, choice, member)
            if result is not None:
                return result

    async def _turn(self, way: _Way, place: Place) -> tuple[Choice, Member]:
        """Wait until a replica has room for the job, and return it."""
        while True:
            way.job.stop.check()
            choice = self._choose(way, place)
            if choice is not None and (member := self._members.all[choice.replica]).has_room:
                return choice, member
            await self._members.until_changed(min(_LOOK_AGAIN_S, way.job.stop.remaining_s))

    def _choose(self, way: _Way, waiting: Place) -> Choice | None:
        """Return the best replica for the job; None if one has to be waited for. Raises why there is none."""
        job, states = way.job, self._line.states(self._members.states(), waiting)
        needs = self._needs_of(job, self._members.seconds_for(job.call.spec.id))
        choices = place(needs, states, time.monotonic())
        if way.larger_than is not None:
            choices = larger_than(choices, next(s for s in states if s.name == way.larger_than), states)
        able = [choice for choice in choices if choice.replica not in way.unable]
        if way.attempts >= MOST_ATTEMPTS and way.failure is not None:
            raise way.failure
        left = [choice for choice in able if choice.replica not in way.tried]
        if not left and able:
            way.tried.clear()  # each was tried: they may be well again
            left = able
        if left:
            way.waits_since = None
            return self._line.next(left, waiting)
        self._check_patience(way, needs, states)
        return None

    def _check_patience(self, way: _Way, needs: Needs, states: Sequence[ReplicaState]) -> None:
        """Raise why no replica takes the job, unless one that rests may have it before long."""
        refused = refusals(needs, states)
        resting = [item for item in refused if not item.lasting and item.replica not in way.unable]
        if not resting or way.larger_than is not None:
            raise way.failure or UnsupportedModel(
                f"No worker behind this gateway can run {needs.model}: {'; '.join(item.reason for item in refused)}.",
                field="model",
            )
        way.waits_since = way.waits_since or time.monotonic()
        if time.monotonic() - way.waits_since > PATIENCE_S:
            raise way.failure or Unreachable(
                f"No worker that could run {needs.model} answers: {'; '.join(item.reason for item in resting)}; "
                "try again in a minute.",
                details={"retry_after_s": 60},
            )

    async def _attempt(self, way: _Way, choice: Choice, member: Member) -> JobResult | None:
        """Have the job generated by one replica; None if another one has to be chosen. Raises the job's own error."""
        job, platform = way.job, member.platform
        state, started = member.state(time.monotonic()), time.monotonic()
        way.attempts += 1
        way.tried.add(member.name)
        heard = False

        def emit(progress: Progress) -> None:
            nonlocal heard
            if not heard and not state.warm:
                member.has_started_in(time.monotonic() - started)
            heard = True
            way.emit(progress)

        try:
            with member.sent(job.call.spec.id, choice.busy_s):
                result: JobResult | None
                try:
                    result = await platform.send(job, way.key, emit)
                except LostSight as lost:
                    way.failure = lost.error
                    result = await platform.reconcile(job, way.key, emit)
        except NotTaken as failure:
            self._note(way, member, failure)
            return None
        except LostSight as lost:
            self._note(way, member, NotTaken(lost.error))
            return None
        except WorkerError:
            member.breaker.succeeded()  # it answered
            raise
        finally:
            self._members.change()
        if result is None:
            self._note(way, member, NotTaken(way.failure or Unreachable(f"The worker {member.name} lost the job.")))
            return None
        await asyncio.sleep(0)  # progress that came together with the result is told of before it
        member.has_answered(job.call.spec.id, [adapter.spec.model for adapter in job.adapters])
        self._members.learn(result, state)
        return _placed(result, choice, way, state.usd_per_second)

    def _note(self, way: _Way, member: Member, failure: NotTaken) -> None:
        """Note why a replica does not have the job, and what follows for it and for others."""
        way.failure = failure.error
        way.past.append(member.name)
        if failure.ill:
            member.breaker.failed()
        else:
            member.breaker.succeeded()
        if failure.retry_after_s is not None:
            member.breaker.rest(failure.retry_after_s)
        if isinstance(failure.error, OutOfMemory):
            way.larger_than = member.name
        if not failure.ill and not isinstance(failure.error, Overloaded):
            way.unable.add(member.name)


def _placed(result: JobResult, choice: Choice, way: _Way, usd_per_second: float) -> JobResult:
    """Return the result with where it was made and why there, and with its price where it has none."""
    before = f" Before, {', '.join(way.past)} did not answer or refused." if way.past else ""
    placement = Placement(
        choice.replica, choice.tier, f"{choice.reason}{before}", choice.seconds, choice.usd, way.attempts
    )
    usage = result.usage
    if usage.cost_usd is None and usd_per_second:
        usage = replace(usage, cost_usd=usage.gpu_seconds * usd_per_second)
    return replace(result, placement=placement, usage=usage)
