"""The facts by which a job is placed: what a replica has and does, and what a job needs. Plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from worker.core.device import MemoryWays, Nearness
from worker.core.precision import Offload

# `resting`: its breaker is open, nothing is sent to it. `trying`: one job may find out if it is well again.
Health = Literal["well", "trying", "resting"]
Kind = Literal["http", "runpod", "runpod-lb", "modal", "ray", "hosted"]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica, or an endpoint that scales by itself, as it is known now.

    Seconds are wall seconds; `usd_per_second` is the price of its device while it works or loads. What has not been
    measured yet is the operator's figure, or a guess that is replaced by the first measurement.
    """

    name: str
    kind: Kind = "http"
    tier: str | None = None  # of models.yaml
    vram_bytes: int | None = None  # of one device; None where nobody said: then nothing is too large for it
    serves: frozenset[str] | None = None  # ids of models.yaml; None for all of them
    resident: frozenset[str] = frozenset()  # the models on the device now
    resident_adapters: frozenset[str] = frozenset()  # references of LoRAs and ControlNets that it keeps there
    resident_slots: int = 1  # the models that it keeps there at once
    on_disk: frozenset[str] = frozenset()  # on the host's own disk
    on_volume: frozenset[str] = frozenset()  # on a volume that its host mounts
    volume: str | None = None  # the name of that volume: replicas with the same one share its files
    volume_id: str | None = None  # of the volume with its history of versions; None where it does not say
    jobs_running: int = 0
    jobs_queued: int = 0
    queue_s: float = 0.0  # expected until a job sent now would begin
    queued_models: tuple[str, ...] = ()  # of the jobs before it, in their order: they will be resident then
    workers: int = 1  # that run now; more than one of an endpoint whose platform chooses among them
    can_grow: bool = False  # the platform starts another worker when all are busy
    warm: bool = True  # False while a cold start comes first
    cold_start_s: float = 0.0  # as measured; added where it is not warm
    disk_bytes_per_s: float = 2e9  # from the host's disk onto the device
    volume_bytes_per_s: float = 300e6
    download_bytes_per_s: float = 100e6
    usd_per_second: float = 0.0
    # Of a provider that asks for money by the image, or by its megapixels, of which one that is begun is charged whole.
    usd_per_image: float = 0.0
    usd_per_megapixel: float = 0.0
    max_usd_per_image: float = 0.0  # what the operator allows there
    usd_left: float | None = None  # of what it may be paid today; None where that has no end
    answers_in_s: float | None = None  # a job there, as measured
    speed: float = 1.0  # times as fast as the tier that `Needs.inference_s` is of
    health: Health = "well"
    used_at: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Model -> when a job for it was last sent there, on time.monotonic's clock: what keeps two models apart."""

    def usd_of_image(self, megapixels: float) -> float:
        """Return the price of one image of this size."""
        return self.usd_per_image + self.usd_per_megapixel * math.ceil(megapixels)


@dataclass(frozen=True, slots=True)
class Weights:
    """One file set that a job needs on the device: its model, a LoRA, a ControlNet … `size` None: not known."""

    name: str  # a model id or a reference, as `ReplicaState.resident` has it
    size: int | None = None  # bytes
    everywhere: bool = False  # every replica has it on its disk, as the files beside models.yaml


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job needs of a replica. `tier` is the one that models.yaml names for the model; None where it does not."""

    model: str
    tier: str | None = None
    vram_bytes: int | None = None  # at the least, by the operator's word or by the plan; None: not known
    memory: MemoryWays = ()  # by the plan; empty: not known
    weights: tuple[Weights, ...] = ()  # the model's first
    images: int = 1
    megapixels: float = 1.0  # of one image
    inference_s: float = 5.0  # expected on a replica of speed 1


_WHERE: Mapping[Nearness, str] = {
    "resident": "is resident",
    "disk": "is on its disk",
    "volume": "is on its volume",
    "elsewhere": "has to be downloaded",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A replica that can take a job: `seconds` until its images are there, `usd` for them, and a sentence why.

    The seconds are the sum of four. `regret_s` are those that others are expected to wait for what makes room.
    """

    replica: str
    tier: str | None
    model: str
    nearness: Nearness  # of the model
    moved_bytes: int  # what is brought into its memory, adapters included
    offload: Offload
    wait_s: float
    start_s: float
    move_s: float
    run_s: float
    usd: float
    evicted: str | None = None
    regret_s: float = 0.0
    is_hosted: bool = False
    beside: "Choice | None" = None  # of the first choice: the next one

    @property
    def reason(self) -> str:
        """A sentence: what the job takes there, and beside what."""
        words = f"{self.replica}: {self._outline}"
        other = self.beside
        return f"{words}." if other is None else f"{words}; next is {other.replica}: {other._outline}."

    @property
    def _outline(self) -> str:
        facts = [f"{self.model} {'is drawn by a provider' if self.is_hosted else _WHERE[self.nearness]}"]
        if self.wait_s:
            facts.append(f"{self.wait_s:.1f} s of queue")
        if self.start_s:
            facts.append(f"{self.start_s:.1f} s to start")
        if self.moved_bytes:
            facts.append(f"{self.move_s:.1f} s to move {gigabytes(self.moved_bytes)}")
        if self.offload != "none":
            facts.append(f"{self.offload} offloading")
        if self.evicted is not None:
            facts.append(f"{self.evicted} makes room")
        price = f" and ${self.usd:.2g}" if self.usd else ""
        return f"{', '.join(facts)}: {self.seconds:.1f} s{price}"

    @property
    def seconds(self) -> float:
        """Seconds to the images."""
        return self.wait_s + self.busy_s

    @property
    def busy_s(self) -> float:
        """Seconds that the job keeps the replica once its turn has come: what it adds to the queue there."""
        return self.start_s + self.move_s + self.run_s


def gigabytes(size: int) -> str:
    """Return bytes as people read them."""
    return f"{size / 1e9:.1f} GB"
