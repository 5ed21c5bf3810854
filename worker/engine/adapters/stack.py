"""All of a job's adapters in one context: on the pipeline for the job, and off again after it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from worker.core.adapter import AdapterFiles, AdapterReport
from worker.core.job import Batch, Job
from worker.core.result import EngineReport, LoraReport
from worker.engine.adapters.controls import ControlCache
from worker.engine.adapters.embeddings import taught, unnamed
from worker.engine.adapters.host import Apply, Effect, Host
from worker.engine.adapters.hypernetworks import HypernetworkCache
from worker.engine.adapters.image_prompts import ImagePromptCache
from worker.engine.adapters.lora import LoraCache
from worker.engine.adapters.merging import MergeCache
from worker.engine.adapters.mixing import Mixture
from worker.engine.adapters.vae import VaeCache
from worker.engine.resident import Resident
from worker.engine.spreading import at_home


def _no_notes(adapters: Sequence[AdapterFiles[Any]], job: Job) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Applier:
    """The way to apply one kind. `make` gets the number of LoRAs that a pipeline keeps, and the merged weights."""

    make: Callable[[int, MergeCache], Apply]
    exchanges: bool = False  # True if it exchanges modules of the pipeline, for which offloading is set up anew
    refines: bool = False  # True if it serves the job's refiner too
    notes: Callable[[Sequence[Any], Job], tuple[str, ...]] = _no_notes  # notes for the caller of one job only


# THE TABLE: the request's field -> its applier, the outermost first. Few adapters are kept ready beside each pipeline:
# one ControlNet of SDXL is 2.5 GB of host memory, one IP-Adapter 0.7 GB, one of FLUX.1 a gigabyte, a VAE 0.2.
APPLIERS: Mapping[str, Applier] = {
    "controlnets": Applier(lambda *_: ControlCache(3).applied),
    "loras": Applier(lambda resident, merges: LoraCache(resident, merges).applied),
    "embeddings": Applier(lambda *_: taught, notes=unnamed),
    "hypernetworks": Applier(lambda resident, _: HypernetworkCache(resident).applied),
    "ip_adapters": Applier(lambda *_: ImagePromptCache(2).applied, exchanges=True),
    "vae": Applier(lambda *_: VaeCache(2).applied, exchanges=True, refines=True),
}


@dataclass(frozen=True, slots=True)
class Applied:
    """The pipeline to call, its call's arguments for the adapters, their reports, and warnings for every job."""

    pipe: Any
    arguments: Mapping[str, Any]
    loras: tuple[LoraReport, ...]
    adapters: tuple[AdapterReport, ...]
    notes: tuple[str, ...]
    mixture: Mixture | None = None  # the LoRAs of jobs that differ in them

    @property
    def report(self) -> EngineReport:
        """A report of the adapters, before anything was generated."""
        return EngineReport((), self.loras, self.mixture.reports if self.mixture else {}, self.adapters)

    def notes_for(self, job: Job) -> tuple[str, ...]:
        """Return the warnings for one job."""
        return self.notes + (self.mixture.notes[job.id] if self.mixture else ())


class AdapterStack:
    """The adapters of all resident pipelines. Used from the engine's thread only.

    `merge_limit` is the most bytes of merged weights, None for half of what a job leaves free.
    """

    def __init__(self, resident_loras: int, merge_limit: int | None = None) -> None:
        self._merges = MergeCache(resident_loras, merge_limit)
        self._appliers = {name: (row, row.make(resident_loras, self._merges)) for name, row in APPLIERS.items()}

    def release(self) -> None:
        """Give back the memory of merged weights: a model is about to be loaded, or memory is short."""
        self._merges.clear()

    @contextmanager
    def applied(self, resident: Resident, batch: Batch, room: Callable[[], int]) -> Iterator[Applied]:
        """Put the batch's adapters on its pipeline, and take them off whatever happens.

        `room` returns the bytes that the batch leaves free on the device. Raises Unmixable for jobs with LoRAs of
        their own that cannot be in one call.
        """
        job = batch.jobs[0]
        mixture = Mixture.of(batch.own_loras) if batch.own_loras else None
        host = Host(resident, job.call.pipeline, job.call.spec.id, room, batch.check, mixture)
        with self._opened(host, batch, [*self._appliers]) as effects:
            reports = [report for effect in effects for report in effect.reports]
            yield Applied(
                host.pipe,
                {name: value for effect in effects for name, value in effect.arguments.items()},
                tuple(report for report in reports if isinstance(report, LoraReport)),
                tuple(report for report in reports if isinstance(report, AdapterReport)),
                tuple(note for effect in effects for note in effect.notes),
                mixture,
            )

    @contextmanager
    def refining(self, resident: Resident, class_name: str, batch: Batch) -> Iterator[Any]:
        """Yield the batch's refiner as `class_name`, with the adapters that serve it too: a VAE, for example."""
        host = Host(resident, class_name, batch.jobs[0].call.spec.id)
        with self._opened(host, batch, [name for name, (row, _) in self._appliers.items() if row.refines]):
            yield host.pipe

    def notes(self, batch: Batch, job: Job) -> tuple[str, ...]:
        """Return notes on the batch's adapters for the caller of `job`."""
        return tuple(
            note for name, (row, _) in self._appliers.items() for note in row.notes(batch.adapters_of(name), job)
        )

    @contextmanager
    def _opened(self, host: Host, batch: Batch, names: Sequence[str]) -> Iterator[list[Effect]]:
        """Put the adapters of these kinds on `host`, and yield the effect of each kind."""
        present = [
            (*self._appliers[name], files)
            for name in names
            if (files := batch.adapters_of(name)) or (name == "loras" and host.mixture is not None)
        ]
        effects: list[Effect] = []
        exchanged = False
        with ExitStack() as stack:
            for row, apply, files in present:
                if row.exchanges and not exchanged:
                    stack.enter_context(host.offloading.restored())
                    exchanged = True
                effects.append(stack.enter_context(apply(host, files)))
            if exchanged:
                stack.enter_context(host.offloading.settled())
            stack.enter_context(at_home(host.pipe, host.resident.plan))
            yield effects
