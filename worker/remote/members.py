"""The replicas of a gateway, with what is known of each: what it says, what was sent there, and whether it is well."""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from worker.core.result import JobResult
from worker.remote.breakers import Breaker
from worker.remote.platforms.platform import Platform
from worker.remote.replica import ReplicaState

OBSERVE_S = 5.0
OBSERVE_RESTING_S = 2.0
_NEWEST = 0.3  # the weight of the last measurement in a running mean
_ADAPTERS_KEPT = 4  # a worker's RESIDENT_LORAS, unless it is set otherwise
_SECOND_THOUGHT_S = 10.0  # for which what was sent there says more of what is resident than what it said itself


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A job that was sent and is not back. `seconds` is how long it was expected to keep the replica."""

    model: str
    seconds: float
    sent_at: float


@dataclass(slots=True)
class Member:
    """One replica. At most `concurrency` jobs are sent to it at once; the others wait here, where they can still go
    elsewhere.
    """

    platform: Platform
    concurrency: int = 8
    breaker: Breaker = field(default_factory=Breaker)
    jobs: dict[int, Outstanding] = field(default_factory=dict)
    used_at: Mapping[str, float] = field(default_factory=dict)
    answered: Mapping[str, float] = field(default_factory=dict)  # model -> when it was last there for certain
    adapters: tuple[str, ...] = ()  # beside the model that it answered with last
    cold_start_s: float | None = None  # as measured

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self.platform.name

    @property
    def has_room(self) -> bool:
        """True if another job may be sent now."""
        most = 1 if self.breaker.health == "trying" else self.concurrency
        return len(self.jobs) < most

    def state(self, now: float) -> ReplicaState:
        """Return what it said of itself when it was last asked, and what has happened since."""
        facts = self.platform.state()
        ahead = sorted(self.jobs.values(), key=lambda job: job.sent_at)
        others = max(0, facts.jobs_running + facts.jobs_queued - len(ahead))
        mean_s = sum(job.seconds for job in ahead) / len(ahead) if ahead else 5.0
        waiting_s = sum(max(job.seconds / 4, job.sent_at + job.seconds - now) for job in ahead[:1])
        waiting_s += sum(job.seconds for job in ahead[1:]) + others * mean_s
        recent = {model for model, at in self.answered.items() if now - at < _SECOND_THOUGHT_S}
        newest = sorted(recent, key=lambda model: -self.answered[model])[: facts.resident_slots]
        resident = frozenset(newest) if len(newest) == facts.resident_slots else facts.resident.union(newest)
        # What it has answered with lies on its volume, or on its disk; a platform's next worker has another disk.
        keeps = facts.kind == "http" and facts.volume is None
        on_disk = facts.on_disk.union(self.answered) if keeps else facts.on_disk
        return replace(
            facts,
            on_disk=on_disk,
            resident_adapters=frozenset(self.adapters),
            health="resting" if facts.health == "resting" else self.breaker.health,
            resident=resident,
            jobs_running=len(ahead) + others,
            queue_s=waiting_s / max(1, facts.workers),
            queued_models=tuple(job.model for job in ahead),
            cold_start_s=facts.cold_start_s if self.cold_start_s is None else self.cold_start_s,
            used_at=self.used_at,
        )

    @contextlib.contextmanager
    def sent(self, model: str, seconds: float) -> Iterator[None]:
        """Enclose a job that is with this replica."""
        job = Outstanding(model, seconds, time.monotonic())
        self.jobs[id(job)] = job
        self.used_at = {**self.used_at, model: job.sent_at}
        self.breaker.began()
        try:
            yield
        finally:
            del self.jobs[id(job)]

    def has_answered(self, model: str, adapters: Sequence[str] = ()) -> None:
        """Note a result, and the adapters that stay in memory beside its model."""
        self.breaker.succeeded()
        newest = max(self.answered, key=lambda name: self.answered[name], default=model)
        earlier = self.adapters if newest == model else ()
        self.adapters = tuple(dict.fromkeys([*adapters, *earlier]))[:_ADAPTERS_KEPT]
        self.answered = {**self.answered, model: time.monotonic()}

    def has_let_go_of(self, model: str) -> None:
        """Note that the model is not on its device any more; its files are where they were."""
        if model in self.answered:
            self.answered = {**self.answered, model: -math.inf}

    def has_started_in(self, seconds: float) -> None:
        """Note how long a cold start took."""
        self.cold_start_s = _mean(self.cold_start_s, seconds)


class Members:
    """All replicas. For one event loop."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.all: Mapping[str, Member] = {member.name: member for member in members}
        self._seconds: dict[str, float] = {}
        self._changed = asyncio.Event()

    def volumes(self) -> dict[str, str | None]:
        """Return the id of each replica's volume, None of one that does not say."""
        return {name: member.platform.state().volume_id for name, member in self.all.items()}

    def states(self) -> tuple[ReplicaState, ...]:
        """Return the state of every replica, as it is known now."""
        now = time.monotonic()
        states = [member.state(now) for member in self.all.values()]
        read: dict[str, set[str]] = {}
        for member, state in zip(self.all.values(), states, strict=True):
            if state.volume is not None:
                read.setdefault(state.volume, set()).update(member.answered)
        return tuple(
            replace(state, on_volume=state.on_volume | read[state.volume]) if state.volume is not None else state
            for state in states
        )

    def seconds_for(self, model: str) -> float:
        """Return how long a job for `model` takes to generate, as measured; a guess before the first."""
        return self._seconds.get(model, 5.0)

    def learn(self, result: JobResult, state: ReplicaState) -> None:
        """Learn from a result how long its model takes, on a replica of speed 1. A provider's tells of its own."""
        if state.kind == "hosted":
            return
        seconds = result.timings.inference_s * state.speed / max(1, result.timings.batch_size)
        if seconds > 0:
            self._seconds[result.model] = _mean(self._seconds.get(result.model), seconds)

    def change(self) -> None:
        """Tell those who wait that a replica has room, or is well again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until_changed(self, within_s: float) -> None:
        """Wait for the next change, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, within_s)):
                await self._changed.wait()

    async def observe(self) -> None:
        """Look at every replica once, at all of them at the same time."""
        await asyncio.gather(*(self._observe(member) for member in self.all.values()))

    async def watch(self) -> None:
        """Look at every replica again and again, at those that rest more often. Runs until it is cancelled."""
        await asyncio.gather(*(self._watch(member) for member in self.all.values()))

    async def close(self) -> None:
        """Let go of all connections."""
        await asyncio.gather(*(member.platform.close() for member in self.all.values()))

    async def _watch(self, member: Member) -> None:
        while True:
            state = await self._observe(member)
            await asyncio.sleep(OBSERVE_RESTING_S if state.health == "resting" else OBSERVE_S)

    async def _observe(self, member: Member) -> ReplicaState:
        state = await member.platform.observe()
        self.change()
        return state


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _NEWEST * (newest - mean)
