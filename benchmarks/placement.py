"""Placement, simulated: 16 replicas, 40 models, Zipf traffic; ours beside what load balancers do.

    python -m benchmarks.placement [--jobs 20000] [--replicas 16] [--models 40] [--seed 7]

No clock and no GPU: a replica answers its queue in order, loads a model that is not in its memory from its own disk or
from the shared volume, and forgets the one unused for longest. Figures of the machines: a host's disk gives 2 GB a
second and keeps 300 GB, the volume gives 300 MB a second. The same seed gives the same numbers on every machine.
"""

import argparse
import random
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from worker.remote.placement import place
from worker.remote.replica import Needs, ReplicaState, Weights

GB = 10**9
DISK_RATE, VOLUME_RATE, DISK_BYTES = 2e9, 3e8, 300 * GB


@dataclass(frozen=True)
class Model:
    """One model: its bytes, and the seconds that an image of it takes."""

    name: str
    size: int
    run_s: float

    @property
    def needs(self) -> Needs:
        """What a job for it needs."""
        return Needs(model=self.name, weights=(Weights(self.name, self.size),), inference_s=self.run_s)


@dataclass(frozen=True)
class Arrival:
    """One job, and when it comes."""

    at: float
    model: Model


@dataclass
class Replica:
    """One machine: what it has, and the jobs it was given."""

    name: str
    everything: frozenset[str]
    slots: int
    memory: list[Model] = field(default_factory=list)  # after its queue; the last used last
    disk: list[Model] = field(default_factory=list)
    waiting: deque[tuple[float, float, Model]] = field(default_factory=deque)  # start, end
    now_resident: list[Model] = field(default_factory=list)
    used_at: dict[str, float] = field(default_factory=dict)
    free_at: float = 0.0

    def look(self, now: float) -> None:
        """Forget what is done by `now`."""
        while self.waiting and self.waiting[0][1] <= now:
            model = self.waiting.popleft()[2]
            _use(self.now_resident, model)
            del self.now_resident[: -self.slots]

    def state(self, now: float) -> ReplicaState:
        """What a gateway knows of it."""
        return ReplicaState(
            name=self.name,
            vram_bytes=48 * GB,
            resident=frozenset(model.name for model in self.now_resident),
            resident_slots=self.slots,
            on_disk=frozenset(model.name for model in self.disk),
            on_volume=self.everything,
            queue_s=max(0.0, self.free_at - now),
            queued_models=tuple(model.name for _, _, model in self.waiting),
            disk_bytes_per_s=DISK_RATE,
            volume_bytes_per_s=VOLUME_RATE,
            used_at=self.used_at,
        )

    def take(self, job: Arrival) -> tuple[float, int, int]:
        """Take a job; return its latency, and the bytes that it brings into memory and over the network."""
        start, model = max(job.at, self.free_at), job.model
        loaded = fetched = 0
        busy_s = model.run_s
        if model not in self.memory:
            loaded = model.size
            fetched = 0 if model in self.disk else model.size
            busy_s += model.size / (VOLUME_RATE if fetched else DISK_RATE)
        _use(self.memory, model)
        del self.memory[: -self.slots]
        _use(self.disk, model)
        while sum(kept.size for kept in self.disk) > DISK_BYTES:
            del self.disk[0]
        self.free_at = start + busy_s
        self.used_at[model.name] = job.at
        self.waiting.append((start, self.free_at, model))
        return self.free_at - job.at, loaded, fetched


def _use(order: list[Model], model: Model) -> None:
    if model in order:
        order.remove(model)
    order.append(model)


Choose = Callable[[Sequence[Replica], Arrival, random.Random], Replica]


def ours(replicas: Sequence[Replica], job: Arrival, dice: random.Random) -> Replica:
    """The worker's own placement."""
    chosen = place(job.model.needs, [replica.state(job.at) for replica in replicas], job.at)[0].replica
    return next(replica for replica in replicas if replica.name == chosen)


def round_robin() -> Choose:
    """One after the other."""
    turn = -1

    def choose(replicas: Sequence[Replica], job: Arrival, dice: random.Random) -> Replica:
        nonlocal turn
        turn += 1
        return replicas[turn % len(replicas)]

    return choose


def power_of_two(replicas: Sequence[Replica], job: Arrival, dice: random.Random) -> Replica:
    """Of two at random, the one with fewer jobs."""
    return min(dice.sample(replicas, 2), key=lambda replica: len(replica.waiting))


def least_loaded(replicas: Sequence[Replica], job: Arrival, dice: random.Random) -> Replica:
    """The one with the fewest jobs; of several any one."""
    fewest = min(len(replica.waiting) for replica in replicas)
    return dice.choice([replica for replica in replicas if len(replica.waiting) == fewest])


def by_hash(replicas: Sequence[Replica], job: Arrival, dice: random.Random) -> Replica:
    """Always the same one for a model, whatever its queue."""
    return replicas[zlib.crc32(job.model.name.encode()) % len(replicas)]


def policies() -> dict[str, Choose]:
    """Return all of them, fresh."""
    return {
        "ours": ours,
        "round robin": round_robin(),
        "power of two": power_of_two,
        "least loaded": least_loaded,
        "by hash": by_hash,
    }


@dataclass(frozen=True)
class Outcome:
    """What a policy made of the traffic. Bytes are those of a request on average."""

    loads: float  # a request
    p50_s: float
    p99_s: float
    loaded_bytes: float  # into memory
    fetched_bytes: float  # over the network


@dataclass(frozen=True)
class Fleet:
    """The size of a simulation. `rate` is requests a second."""

    replicas: int = 16
    models: int = 40
    jobs: int = 20_000
    rate: float = 0.5
    slots: int = 1
    exponent: float = 1.0
    seed: int = 7

    def traffic(self) -> tuple[tuple[Model, ...], list[Arrival]]:
        """Return the models, the most wanted first, and the jobs in the order of their coming."""
        dice = random.Random(self.seed)
        models = tuple(
            Model(f"m{index:03}", dice.choice((4, 7, 12, 16, 24, 34)) * GB, dice.choice((1.5, 3.0, 6.0, 9.0)))
            for index in range(self.models)
        )
        weights = [1 / (rank + 1) ** self.exponent for rank in range(self.models)]
        at = 0.0
        jobs = []
        for model in dice.choices(models, weights, k=self.jobs):
            at += dice.expovariate(self.rate)
            jobs.append(Arrival(at, model))
        return models, jobs

    def run(self, choose: Choose) -> Outcome:
        """Send the traffic through a fresh fleet."""
        models, jobs = self.traffic()
        everything = frozenset(model.name for model in models)
        replicas = [Replica(f"r{index:04}", everything, self.slots) for index in range(self.replicas)]
        dice = random.Random(self.seed)
        latencies, loads, loaded, fetched = [], 0, 0, 0
        for job in jobs:
            for replica in replicas:
                replica.look(job.at)
            latency, into_memory, over_network = choose(replicas, job, dice).take(job)
            latencies.append(latency)
            loads += into_memory > 0
            loaded += into_memory
            fetched += over_network
        latencies.sort()
        count = len(jobs)
        return Outcome(
            loads=loads / count,
            p50_s=latencies[count // 2],
            p99_s=latencies[count * 99 // 100],
            loaded_bytes=loaded / count,
            fetched_bytes=fetched / count,
        )


def compare(fleet: Fleet) -> dict[str, Outcome]:
    """Return what each policy makes of the same traffic."""
    return {name: fleet.run(choose) for name, choose in policies().items()}


def main() -> None:
    """Print a table for light and for heavy traffic."""
    parser = argparse.ArgumentParser(description="Simulate placement beside what load balancers do.")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--slots", type=int, default=1, help="models that a replica keeps in memory")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    for rate in (0.4, 1.2):
        rate *= given.replicas / 16
        fleet = Fleet(given.replicas, given.models, given.jobs, rate, given.slots, seed=given.seed)
        title = f"{fleet.replicas} replicas, {fleet.models} models, {fleet.jobs:,} jobs at {rate:g} a second"
        table = Table(
            "placement", "loads/job", "p50 s", "p99 s", "GB into memory/job", "GB over network/job", title=title
        )
        for name, outcome in compare(fleet).items():
            figures = (
                outcome.loads,
                outcome.p50_s,
                outcome.p99_s,
                outcome.loaded_bytes / GB,
                outcome.fetched_bytes / GB,
            )
            table.add_row(name, *(f"{figure:.3g}" for figure in figures))
        Console().print(table)


if __name__ == "__main__":
    main()
