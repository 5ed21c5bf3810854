"""Plans, the worker's status, and models put on the device and taken off it: all that needs the device."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from worker import __version__
from worker.catalog.architectures import architecture
from worker.catalog.call import Model
from worker.catalog.detectors.storage import outlined_files
from worker.catalog.interface.precisions import precisions
from worker.catalog.interface.sizes import size_bounds
from worker.core import moments
from worker.core.answer import Pace, PlanReport, Preloaded, Unloaded, WorkerStatus
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import WorkerError
from worker.core.model import ModelFiles
from worker.core.precision import Precision
from worker.core.result import Emit, Progress, ignore_progress
from worker.core.turn import current
from worker.service.accepting.judging import Judge
from worker.service.accepting.resolving import ModelResolver
from worker.service.introspection.answers import with_what_is_known
from worker.service.limits.admission import Load
from worker.service.limits.pools import Pool, Pools
from worker.service.local.engine_thread import EngineThread
from worker.service.local.provisioning import Provisioner

Planner = Callable[[KnownModel, ModelFiles, DeviceInfo, float], LoadPlan]


@dataclass(frozen=True, slots=True)
class Memories:
    """What is known of models beside their files: the operator's matrix, what worked here (blocking), their pace."""

    judge: Judge
    worked: Callable[[str], Sequence[str]]
    pace_of: Callable[[str], Pace | None]


class DeviceIntrospection:
    """Answers about this worker's device, and moves models onto it and off it."""

    def __init__(
        self,
        resolver: ModelResolver,
        provisioner: Provisioner,
        engine: EngineThread,
        planner: Planner,
        pools: Pools,
        load: Callable[[], Load],
        memories: Memories,
    ) -> None:
        self._resolver = resolver
        self._provisioner = provisioner
        self._engine = engine
        self._planner = planner
        self._pools = pools
        self._load = load
        self._memories = memories

    async def plan(self, model: str | None) -> PlanReport:
        """Plan a run of `model` here: bytes, memory, dtype and offloading, or why it is refused."""
        return await self.plan_of(await self._known(model))

    async def kind_of_device(self) -> str:
        """Return the device and its memory, and a digest of what is known beside it."""
        device = await self._engine.device_info()
        return f"{device.type} {device.name} {device.total_bytes} {self._memories.judge.mark}"

    async def plan_of(self, resolved: Model) -> PlanReport:
        """Plan a run of a model that is known already, whoever may name it."""
        report, memories = await self._planned(resolved), self._memories
        worked = await self._pools.own.run(memories.worked, resolved.spec.id)
        return await with_what_is_known(report, resolved, memories.judge, worked)

    async def _planned(self, resolved: Model) -> PlanReport:
        spec, detection = resolved.spec, resolved.detection
        host = "" if spec.source.is_local else spec.source.host
        outline = await self._headers.run(self._provisioner.peek, spec.source, spec.variant, place=host)
        device = await self._engine.device_info(cards=spec.device_map is not None)
        bounds = size_bounds(resolved)
        megapixels = bounds.native**2 / 1e6
        row = architecture(detection.architecture) if detection.architecture else None
        report = PlanReport(
            model=spec.id,
            architecture=detection.architecture,
            pipeline=detection.pipeline,
            tasks=resolved.tasks,
            revision=outline.revision,
            weight_bytes=outline.weight_bytes or 0,
            native_size=bounds.native,
            device=device.name,
            free_bytes=device.free_bytes,
            family=row.title if row else None,
            pace=self._memories.pace_of(spec.id),
        )
        files = outlined_files(spec.source, outline)
        if files is None:
            return replace(report, reason="How large the weights are is not known before they are fetched.")
        try:
            if spec.source.is_local:  # already here: its headers tell more than its size
                stop = current().stop
                files = await self._headers.run(self._provisioner.model_files, resolved, ignore_progress, stop)
            plan = self._planner(resolved, files, device, megapixels)
        except WorkerError as error:
            return replace(report, fits=False, reason=error.message)
        return replace(report, fits=True, plan=plan, precisions=self._precisions(resolved, files, device, megapixels))

    def _precisions(
        self, model: Model, files: ModelFiles, device: DeviceInfo, megapixels: float
    ) -> dict[Precision, int]:
        """Return the bytes that `model` needs here in each precision that it can be had in."""
        needed: dict[Precision, int] = {}
        for precision in precisions(model):
            if precision == "auto":
                continue
            other = replace(model, spec=model.spec.model_copy(update={"precision": precision}))
            with suppress(WorkerError):
                needed[precision] = self._planner(other, files, device, megapixels).estimated_bytes
        return needed

    def status(self) -> WorkerStatus:
        """Report if the worker is ready, what it runs and what is resident."""
        load = self._load()
        return WorkerStatus(
            status="lost" if self._engine.lost else "ready" if self._engine.ready else "starting",
            version=__version__,
            running=self._engine.running,
            jobs_running=load.running,
            jobs_queued=load.queued,
            resident_models=tuple(self._engine.resident_models),
            models=len(self._resolver.registry.models),
            levers=self._engine.levers,
        )

    @property
    def obstacle(self) -> str | None:
        """A sentence about a device that takes no work now; None of one that does."""
        return self._engine.obstacle

    def is_resident(self, model: str) -> bool:
        """True if this model of the registry is on the device."""
        return self._resolver.registered_id(model) in self._engine.resident_models

    async def check(self, model: str) -> None:
        """Look for the files of `model`, of what completes and of what enlarges it, and fetch none.

        Raises SourceError and its kin.
        """
        resolved = await self._known(model)
        own = resolved.spec.upscale
        for each in [resolved, await self._known(own.model)] if own else [resolved]:
            for source, variant in await self._headers.run(self._provisioner.sources, each):
                await self._headers.run(self._provisioner.peek, source, variant)

    async def preload(self, model: str | None, emit: Emit) -> Preloaded:
        """Fetch `model` and put it on the device, and its own upscaler beside it."""
        resolved = await self._known(model)
        spec = resolved.spec
        plan = await self._preload(resolved, emit)
        if spec.upscale is not None:
            await self._preload(await self._known(spec.upscale.model), emit)
        return Preloaded(spec.id, plan)

    async def _preload(self, resolved: Model, emit: Emit) -> LoadPlan:
        spec, place = resolved.spec, self._resolver.host_of(resolved.spec.id)
        run = self._pools.downloads.run
        files = await run(self._provisioner.model_files, resolved, emit, current().stop, place=place)

        def emit_heard(progress: Progress) -> None:
            self._engine.watchdog.hear(progress, files.total_bytes)
            emit(progress)

        plan = await self._engine.call(lambda engine: engine.preload(resolved, files, emit_heard), f"preload {spec.id}")
        moments.note("first model on the device")
        return plan

    @property
    def _headers(self) -> Pool:
        return self._pools.headers

    async def _known(self, model: str | None) -> Model:
        spec = self._resolver.resolve(model)
        return await self._headers.run(self._resolver.known, spec, place=self._resolver.host_of(model))

    async def unload(self, model: str | None) -> Unloaded:
        """Take `model` off the device."""
        spec = self._resolver.resolve(model)
        dropped = await self._engine.call(lambda engine: engine.unload(spec.id), f"unload {spec.id}")
        return Unloaded(spec.id, dropped > 0)
