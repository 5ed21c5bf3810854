"""The golden gate: which levers a job may use, and what is to be tried next.

The first jobs of a model are generated plainly: they, with their images, are the reference. When the engine idles,
one lever after the other is tried on them, on top of those that were accepted before it. What fails its bound or is
not faster is off. Used from the engine's thread, but for `reports`.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal
from weakref import ref

import torch

from worker.core.errors import DeviceLost, WorkerError
from worker.core.image import Raster
from worker.core.job import Batch, Job
from worker.core.model import ModelFiles, ModelSpec
from worker.core.quality import LeverReport, Quality, allows
from worker.core.result import EngineReport
from worker.core.turn import StopSignal
from worker.engine.devices import probe
from worker.engine.levers.board import Board
from worker.engine.levers.compile_cache import CompileCache
from worker.engine.levers.compiling import stopping_between_blocks, without_compiling
from worker.engine.levers.decisions import Decision, Decisions
from worker.engine.levers.proving import Draw, Reference, failure_of, prove
from worker.engine.levers.row import Ground, Lever, compatible
from worker.engine.resident import Resident

Progressed = Literal["nothing to do", "done", "failed"]
REFERENCES = 2
_SIZES = 4  # for which a lever that has to be made ready is
_LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(slots=True, weakref_slot=True)
class Standing:
    """What is known of one resident pipeline: the levers that apply to it, and its first jobs."""

    model: str
    key: str
    facts: Mapping[str, str]
    ground: Ground
    levers: tuple[Lever, ...]
    jobs: int = 0
    asked: Quality = "exact"  # the most that a job has allowed
    references: list[Reference] = field(default_factory=list)
    sizes: dict[str, Batch] = field(default_factory=dict)  # of jobs, by their shape
    warm: set[tuple[str, str]] = field(default_factory=set)  # (lever, shape) that are ready in this process


@dataclass(frozen=True, slots=True)
class InUse:
    """The levers of one batch."""

    board: Board
    ground: Ground
    levers: tuple[Lever, ...]
    is_trial: bool
    check: Callable[[], None]  # raises where the batch has to stop

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(lever.name for lever in self.levers)

    @property
    def alone(self) -> bool:
        """True if each job has to have its own call."""
        return any(lever.alone for lever in self.levers)

    @contextmanager
    def called(self, pipe: object) -> Iterator[None]:
        """Have them on for a call of `pipe`. Nothing is compiled in it, unless it is a trial's."""
        if not self.levers:
            yield
            return
        with self.board.called(replace(self.ground, pipe=pipe), self.levers):
            if not any(lever.warms for lever in self.levers):
                yield
                return
            with stopping_between_blocks(self.ground, self.check) if self.is_trial else without_compiling():
                yield


class Gate:
    """Levers for all resident pipelines. `levers` are the table's, or none; `kernels` the operator's folders.

    `compiled` keeps what was compiled for other workers.
    """

    def __init__(
        self,
        levers: Sequence[Lever] = (),
        decisions: Decisions | None = None,
        kernels: Mapping[str, Path] | None = None,
        compiled: CompileCache | None = None,
    ) -> None:
        self._levers = tuple(levers)
        self._compiled = compiled
        self._decisions = decisions or Decisions()
        self._kernels = dict(kernels or {})
        self._board = Board()
        self._chosen: tuple[Lever, ...] | None = None
        # Weakly: an evicted pipeline takes what is known of it along.
        self._served: ref[Standing] | None = None
        self._used: tuple[Lever, ...] = ()

    @contextmanager
    def settled(self, resident: Resident, batch: Batch) -> Iterator[InUse]:
        """Have the levers of `batch` on that belong to its pipeline; those of a call are put on for that."""
        standing = self._standing(resident, batch.jobs[0].call.spec, batch.files)
        chosen = self._chosen
        levers = self._usable(standing, batch) if chosen is None else chosen
        self._served, self._used = ref(standing), levers
        self._board.settle(standing.ground, levers)
        yield InUse(self._board, standing.ground, levers, chosen is not None, batch.check)

    @contextmanager
    def plain(self, resident: Resident) -> Iterator[None]:
        """Have a pipeline without levers: it works for another model's job."""
        if self._levers:
            self._board.settle(Ground(resident.pipe, resident.plan.device, resident.plan.offload), ())
        yield

    @contextmanager
    def only(self, levers: Sequence[Lever]) -> Iterator[None]:
        """Have these levers used in the context, whatever was decided."""
        self._chosen = tuple(levers)
        try:
            yield
        finally:
            self._chosen = None

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the levers of the last batch."""
        return tuple(lever.name for lever in self._used)

    @property
    def key(self) -> str:
        """The key of the last batch's pipeline: of its files, dtype, offloading, device and the libraries."""
        standing = self._last_served()
        return "" if standing is None else standing.key

    def note(self, batch: Batch, report: EngineReport) -> None:
        """Remember a job that was done, where it can serve as a reference."""
        standing = self._last_served()
        if standing is None or self._chosen is not None or not standing.levers:
            return
        standing.jobs += len(report.outcomes)
        job = batch.jobs[0]
        if allows(job.quality, standing.asked):
            standing.asked = job.quality
        if not _is_plain(batch) or isinstance(report.outcomes[0], WorkerError):
            return
        own = replace(batch, jobs=(replace(job, stop=StopSignal()),))
        shape = shape_of(job, len(batch.jobs))
        if shape not in standing.sizes and len(standing.sizes) < _SIZES:
            standing.sizes[shape] = _stopping(batch, own.jobs[0].stop)
        if len(standing.references) < REFERENCES:
            images = tuple(artifact.raster for artifact in report.outcomes[0])
            standing.references.append(Reference(own, None if self._used or len(batch.jobs) > 1 else images))

    def doubt(self, levers: Sequence[str]) -> None:
        """Switch levers off: a job failed with them, and was done without."""
        standing = self._last_served()
        if standing is not None:
            for name in levers:
                decision = Decision("off", "a job failed with it, and was done without it")
                self._decisions.note(standing.key, name, decision, standing.facts)

    def improve(self, resident: Resident, stop: StopSignal, draw: Draw) -> Progressed:
        """Try one lever on this pipeline, or make one ready for a size.

        Raises JobCancelled once `stop` says so, and DeviceLost.
        """
        standing = resident.standing
        if not isinstance(standing, Standing) or not standing.references:
            return "nothing to do"
        known = self._decisions.look_again(standing.key)
        for index, lever in enumerate(standing.levers):
            if lever.name in known or standing.jobs < lever.hot or not allows(standing.asked, lever.tier):
                continue
            before = standing.levers[:index]
            base = compatible([each for each in before if _is_on(known, each)])
            return "failed" if self._try(standing, lever, base, stop, draw).failed else "done"
        return self._warm(standing, known, stop, draw)

    def carry_over(self, resident: Resident, reload: Callable[[Batch], Resident]) -> None:
        """Have the pipeline of an evicted resident loaded again, and keep what is known of its jobs."""
        old = resident.standing
        if isinstance(old, Standing):
            batch = old.references[0].batch
            new = self._standing(reload(batch), batch.jobs[0].call.spec, batch.files)
            new.jobs, new.asked, new.references, new.sizes = old.jobs, old.asked, old.references, old.sizes

    def reports(self, residents: Sequence[Resident]) -> tuple[LeverReport, ...]:
        """Return what was decided for these pipelines. From any thread."""
        reports = []
        for standing in (resident.standing for resident in residents):
            if isinstance(standing, Standing):
                decisions = dict(self._decisions.of(standing.key))
                reports += [
                    _report(standing.model, lever, decisions[lever.name])
                    for lever in standing.levers
                    if lever.name in decisions
                ]
        return tuple(reports)

    def _last_served(self) -> Standing | None:
        """Return what is known of the pipeline of the last batch, unless that was evicted since."""
        return self._served() if self._served is not None else None

    def _try(self, standing: Standing, lever: Lever, base: Sequence[Lever], stop: StopSignal, draw: Draw) -> Decision:
        # Noted before: a lever that ends the process is not tried again and again.
        self._decisions.note(standing.key, lever.name, Decision("trying", "it is being tried"), standing.facts)
        decision: Decision | None = None
        ready: list[str] = []

        def watched(batch: Batch, levers: Sequence[Lever]) -> tuple[tuple[Raster, ...], float]:
            stop.check()
            drawn = draw(_stopping(batch, stop), levers)
            ready.append(shape_of(batch.jobs[0], len(batch.jobs)))
            return drawn

        try:
            with self._compiling(standing, (*base, lever), stop):
                decision = prove(lever, base, standing.references, watched)
        except DeviceLost:
            decision = Decision("off", "the device was lost while it was tried")
            raise
        finally:  # of a trial that had to stop nothing is left
            self._decisions.note(standing.key, lever.name, decision, standing.facts)
        if decision.verdict == "on":
            standing.warm |= {(each.name, shape) for each in (*base, lever) for shape in ready}
        return decision

    def _warm(self, standing: Standing, known: Mapping[str, Decision], stop: StopSignal, draw: Draw) -> Progressed:
        """Make the levers ready for a size that jobs have asked for; what was decided elsewhere is not ready here."""
        accepted = [lever for lever in standing.levers if _is_on(known, lever) and allows(standing.asked, lever.tier)]
        cold = [lever for lever in accepted if lever.warms]
        for shape, batch in standing.sizes.items():
            if all((lever.name, shape) in standing.warm for lever in cold):
                continue
            with self._compiling(standing, cold, stop):
                failure = failure_of(partial(draw, _stopping(batch, stop), accepted))
            if failure is None:
                standing.warm |= {(lever.name, shape) for lever in cold}
                return "done"
            for lever in cold:
                self._decisions.note(standing.key, lever.name, failure, standing.facts)
            return "failed"
        return "nothing to do"

    @contextmanager
    def _compiling(self, standing: Standing, levers: Sequence[Lever], stop: StopSignal) -> Iterator[None]:
        """Use what other workers have compiled, and leave them what is compiled in the context."""
        if self._compiled is None or not any(lever.warms for lever in levers):
            yield
            return
        self._compiled.load(standing.key, stop.check)
        yield
        self._compiled.save(standing.key)

    def _usable(self, standing: Standing, batch: Batch) -> tuple[Lever, ...]:
        if not standing.levers:
            return ()
        job, known = batch.jobs[0], self._decisions.of(standing.key)
        shape = shape_of(job, len(batch.jobs))
        accepted = compatible(
            [
                lever
                for lever in standing.levers
                if _is_on(known, lever)
                and allows(job.quality, lever.tier)
                and (lever.beneath_adapters or not batch.all_adapters)
            ]
        )
        return tuple(lever for lever in accepted if not lever.warms or (lever.name, shape) in standing.warm)

    def _standing(self, resident: Resident, spec: ModelSpec, files: ModelFiles) -> Standing:
        if isinstance(resident.standing, Standing):
            return resident.standing
        plan = resident.plan
        ground = Ground(resident.pipe, plan.device, plan.offload, self._kernels, bool(plan.cards) or plan.ranks > 1)
        device = probe(torch.device(plan.device)).name
        versions = {name: metadata.version(name) for name in _LIBRARIES}
        kernels = [f"{name}={folder.name}" for name, folder in sorted(self._kernels.items())]
        facts = {"pipeline": plan.pipeline, "device": device, "dtype": plan.dtype, "offload": plan.offload, **versions}
        facts |= {"precision": f"{plan.precision} by {plan.quantizer}"} if plan.quantizer else {}
        facts |= {"spread": repr(sorted(plan.cards.items()))} if plan.cards else {}
        facts |= {"ranks": str(plan.ranks)} if plan.ranks > 1 else {}
        digest = hashlib.sha256(repr((_content(spec, files), [*facts.items()], kernels)).encode())
        levers = tuple(lever for lever in self._levers if lever.applies(ground))
        resident.standing = standing = Standing(spec.id, digest.hexdigest()[:32], facts, ground, levers)
        return standing


def _report(model: str, lever: Lever, made: Decision) -> LeverReport:
    return LeverReport(model, lever.name, lever.tier, made.verdict, made.reason, made.psnr_db, made.gain)


def _is_on(known: Mapping[str, Decision], lever: Lever) -> bool:
    decision = known.get(lever.name)
    return decision is not None and decision.verdict == "on"


def _is_plain(batch: Batch) -> bool:
    """True for a batch that can be drawn again as it is: of one model alone, with nothing beside it."""
    job = batch.jobs[0]
    alone = not batch.all_adapters and job.finishing.refiner is None and job.finishing.upscaler is None
    return alone and job.generates and job.video is None and not job.is_profiled


def _stopping(batch: Batch, stop: StopSignal) -> Batch:
    return replace(batch, jobs=tuple(replace(job, stop=stop) for job in batch.jobs))


def _content(spec: ModelSpec, files: ModelFiles) -> tuple[object, ...]:
    """Return what tells a model's weights from others', wherever they lie."""
    known = files.sha256 or files.revision
    parts = sorted((name, path.name) for name, path in files.parts.items())
    return spec.source.reference, known, files.total_bytes, files.variant, spec.pipeline, parts


def shape_of(job: Job, jobs: int) -> str:
    """Return what decides over the shapes of a call: class, size, images, and whether it guides."""
    params = job.params
    sizes = [params.get(name) for name in ("width", "height", "num_frames")]
    guides = [bool(params.get(name)) and params.get(name) != 1 for name in ("guidance_scale", "true_cfg_scale")]
    return repr((job.call.pipeline, sizes, guides, jobs, len(job.seeds), len(job.media)))
