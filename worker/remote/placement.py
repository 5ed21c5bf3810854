"""Where a job goes: a pure function of what the job needs and what the replicas have.

The score of a replica is one number, in seconds: those that the caller waits (its queue, a cold start, weights to be
moved, generating), those that others will wait for the model that makes room, and the price, at what a second of
waiting is worth. The price of an eviction is what keeps two models on two replicas from taking turns.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from worker.core.device import Nearness
from worker.core.precision import Offload
from worker.remote.replica import Choice, Needs, ReplicaState, Weights, gigabytes

# Bytes of weights whose size nobody could tell.
UNKNOWN_BYTES = 8_000_000_000
# How many times as long a job takes whose weights move through the device part by part.
_SLOWER: Mapping[Offload, float] = {"none": 1.0, "group": 1.2, "model": 1.6, "sequential": 6.0}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator weighs."""

    second_usd: float = 0.001  # what a second of a caller's waiting is worth
    # A model that was asked for within this time is likely to be asked for again.
    horizon_s: float = 300.0
    # An eviction costs at least this share of loading the evicted model again, so that equals never swap.
    least_regret: float = 0.1


POLICY = Policy()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A replica that is not asked, and why. `lasting` if waiting would not change it."""

    replica: str
    tier: str | None
    reason: str
    lasting: bool


def place(
    needs: Needs, replicas: Sequence[ReplicaState], now: float = 0.0, policy: Policy = POLICY
) -> tuple[Choice, ...]:
    """Return every replica that can take the job, the best first; nothing where none can.

    Those that hold the model whole come before those that must offload it; else the score decides, then the smaller
    memory, then the name. `now` is the time on time.monotonic's clock, as the states' `used_at`.
    """
    fleet = _Fleet.of(needs, replicas, now, policy)
    scored = []
    for replica in replicas:
        if fleet.refusal(replica) is None:
            choice = min(fleet.ways(replica), key=fleet.score)
            scored.append((choice.offload != "none", fleet.score(choice), replica.vram_bytes or 0, choice))
    scored.sort(key=lambda item: (*item[:3], item[3].replica))
    choices = [item[-1] for item in scored]
    if len(choices) > 1:
        choices[0] = replace(choices[0], beside=choices[1])
    return tuple(choices)


def refusals(needs: Needs, replicas: Sequence[ReplicaState]) -> tuple[Refusal, ...]:
    """Return the replicas that `place` leaves out, with their reasons. All lasting: the job is for another fleet."""
    fleet = _Fleet.of(needs, replicas, 0.0, POLICY)
    return tuple(filter(None, map(fleet.refusal, replicas)))


def fits(needs: Needs, replica: ReplicaState) -> bool:
    """True if the replica serves the model and its device is large enough, whether or not it is well."""
    return unfit(needs, replica) is None


def larger_than(
    choices: Sequence[Choice], failed: ReplicaState, replicas: Sequence[ReplicaState]
) -> tuple[Choice, ...]:
    """Return the choices with more memory than a replica that ran out of it, in their order."""
    memory = {replica.name: replica.vram_bytes for replica in replicas}
    least = failed.vram_bytes or 0
    return tuple(choice for choice in choices if (memory[choice.replica] or math.inf) > least)


@dataclass(frozen=True, slots=True)
class _Fleet:
    """One question: a job, and all that is known when it is asked."""

    needs: Needs
    now: float
    policy: Policy
    tier_bytes: int  # the memory of the tier that models.yaml names; 0 where it names none, or the fleet lacks it
    copies: Mapping[str, int]  # model -> the replicas that hold it
    used_at: Mapping[str, float]  # model -> when it was last asked for, anywhere

    @classmethod
    def of(cls, needs: Needs, replicas: Sequence[ReplicaState], now: float, policy: Policy) -> "_Fleet":
        """Add up once what every replica's score asks for: a fleet may have a thousand of them."""
        named = [replica.vram_bytes or 0 for replica in replicas if replica.tier == needs.tier is not None]
        copies: Counter[str] = Counter()
        used_at: dict[str, float] = {}
        for replica in replicas:
            copies.update(replica.resident.union(replica.queued_models))
            for model, at in replica.used_at.items():
                used_at[model] = max(at, used_at.get(model, at))
        return cls(needs, now, policy, min(named, default=0), copies, used_at)

    def score(self, choice: Choice) -> float:
        return choice.seconds + choice.regret_s + choice.usd / self.policy.second_usd

    def refusal(self, replica: ReplicaState) -> Refusal | None:
        """Return why `replica` is not asked, or None."""
        reason = unfit(self.needs, replica)
        if reason is None and replica.kind != "hosted" and (replica.vram_bytes or math.inf) < self.tier_bytes:
            reason = f"{replica.name} is smaller than tier {self.needs.tier}, which models.yaml names for the model"
        if reason is not None:
            return Refusal(replica.name, replica.tier, reason, lasting=True)
        if replica.health == "resting":
            return Refusal(replica.name, replica.tier, f"{replica.name} failed and rests", lasting=False)
        if replica.workers == 0 and not replica.can_grow:
            return Refusal(replica.name, replica.tier, f"{replica.name} has no worker and starts none", lasting=False)
        usd = replica.usd_of_image(self.needs.megapixels) * self.needs.images
        if replica.usd_left is not None and usd > replica.usd_left:
            reason = f"{replica.name} may be paid ${replica.usd_left:.4g} more today and asks ${usd:.4g} for the job"
            return Refusal(replica.name, replica.tier, reason, lasting=False)
        return None

    def ways(self, replica: ReplicaState) -> Iterator[Choice]:
        """Yield the ways to a job's answer by `replica`: by a worker that runs, and by one that is started."""
        if replica.kind == "hosted":
            yield self._choice(replica, Turn(resident=frozenset({self.needs.model})), wait_s=replica.queue_s)
            return
        if replica.workers:
            start_s = 0.0 if replica.warm else replica.cold_start_s
            yield self._choice(replica, turn_of(replica, self.needs.model), wait_s=replica.queue_s, start_s=start_s)
        if replica.can_grow and (replica.workers == 0 or replica.queue_s > 0):
            # A fresh worker has nothing in its memory and nothing on its disk.
            yield self._choice(replica, Turn(), start_s=replica.cold_start_s)

    def _choice(self, replica: ReplicaState, turn: "Turn", *, wait_s: float = 0.0, start_s: float = 0.0) -> Choice:
        needs = self.needs
        nearness: Nearness = "resident"
        moved_bytes, move_s = 0, 0.0
        for index, part in enumerate(needs.weights or (Weights(needs.model),)):
            where = _nearness(part, replica, turn)
            if index == 0:
                nearness = where
            if where != "resident" and replica.kind != "hosted":
                moved_bytes += _size(part)
                move_s += _seconds_to_move(_size(part), where, replica)
        offload = _offload(needs, replica.vram_bytes) or "none"
        run_s = replica.answers_in_s or needs.inference_s / replica.speed * _SLOWER[offload]
        evicted = turn.evicted if nearness != "resident" else None
        return Choice(
            replica=replica.name,
            tier=replica.tier,
            model=needs.model,
            nearness=nearness,
            moved_bytes=moved_bytes,
            offload=offload,
            wait_s=wait_s,
            start_s=start_s,
            move_s=move_s,
            run_s=run_s,
            usd=(start_s + move_s + run_s) * replica.usd_per_second
            + replica.usd_of_image(needs.megapixels) * needs.images,
            evicted=evicted,
            regret_s=0.0 if evicted is None else self._regret(evicted, replica),
            is_hosted=replica.kind == "hosted",
        )

    def _regret(self, model: str, replica: ReplicaState) -> float:
        """Return the seconds that others are expected to wait because `model` is evicted from `replica`.

        A model that was asked for a moment ago is wanted again; copies of it elsewhere share that between them.
        """
        idle_s = max(0.0, self.now - self.used_at.get(model, -math.inf))
        likely = math.exp(-idle_s / self.policy.horizon_s) / max(1, self.copies[model])
        again: Nearness = "volume" if model in replica.on_volume and model not in replica.on_disk else "disk"
        # What is evicted has its size known to nobody here: it counts like the model that takes its place.
        size = _size((self.needs.weights or (Weights(model),))[0])
        return max(likely, self.policy.least_regret) * _seconds_to_move(size, again, replica)


@dataclass(frozen=True, slots=True)
class Turn:
    """A replica as it will be when the jobs before this one are done. `evicted` makes room for this one's model."""

    resident: frozenset[str] = frozenset()
    on_disk: frozenset[str] = frozenset()
    evicted: str | None = None


def turn_of(replica: ReplicaState, model: str) -> Turn:
    """Return what `replica` has when a job that is sent there now begins, and what then makes room for `model`."""
    queued = tuple(dict.fromkeys(reversed(replica.queued_models)))  # the last first
    # What was in memory and is no longer has to come from a disk or the volume again: nothing downloads twice.
    on_disk = replica.on_disk | ((frozenset(queued) | replica.resident) - replica.on_volume)
    if replica.workers > 1:  # which of them takes the job is the platform's choice: nobody knows what makes room
        return Turn(replica.resident | frozenset(queued) | replica.resident_adapters, on_disk)
    idle = [name for name in replica.resident if name not in queued]
    idle.sort(key=lambda name: (-replica.used_at.get(name, -math.inf), name))
    kept = [*queued, *idle][: replica.resident_slots]
    makes_room = kept[-1] if len(kept) == replica.resident_slots and model not in kept else None
    return Turn(frozenset(kept) | replica.resident_adapters, on_disk, makes_room)


def _nearness(part: Weights, replica: ReplicaState, turn: Turn) -> Nearness:
    if part.name in turn.resident:
        return "resident"
    if part.everywhere or part.name in turn.on_disk:
        return "disk"
    return "volume" if part.name in replica.on_volume else "elsewhere"


def _size(part: Weights) -> int:
    return UNKNOWN_BYTES if part.size is None else part.size


def _seconds_to_move(size: int, where: Nearness, replica: ReplicaState) -> float:
    """Return seconds until `size` bytes are on the device. A download is written to the disk first, then read."""
    match where:
        case "resident":
            return 0.0
        case "disk":
            return size / replica.disk_bytes_per_s
        case "volume":
            return size / replica.volume_bytes_per_s
        case "elsewhere":
            return size / replica.download_bytes_per_s + size / replica.disk_bytes_per_s


def unfit(needs: Needs, replica: ReplicaState) -> str | None:
    """Return why the job can never be for `replica`, however long it waits."""
    if replica.serves is not None and needs.model not in replica.serves:
        return f"{replica.name} does not serve {needs.model}"
    if replica.kind == "hosted":
        if len(needs.weights) > 1:
            return f"{replica.name} takes no LoRAs and no ControlNets"
        usd = replica.usd_of_image(needs.megapixels)
        if usd > replica.max_usd_per_image:
            return f"{replica.name} asks ${usd:.4g} for an image and ${replica.max_usd_per_image:.4g} are allowed"
        return None
    if replica.vram_bytes is None:
        return None
    least = max(needs.vram_bytes or 0, needs.memory[-1][1] if needs.memory else 0)
    if least > replica.vram_bytes:
        return f"{replica.name} has {gigabytes(replica.vram_bytes)} and {needs.model} needs {gigabytes(least)}"
    return None


def _offload(needs: Needs, vram_bytes: int | None) -> Offload | None:
    """Return the fastest way to load the model in this much memory; None where none fits."""
    if vram_bytes is None or not needs.memory:
        return "none"
    return next((offload for offload, size in needs.memory if size <= vram_bytes), None)
