"""The answers of a gateway about the workers behind it: which of them answer, and where a model would run."""

import time
import uuid
from collections.abc import Callable

from worker import __version__
from worker.catalog.architectures import architecture
from worker.catalog.call import Model
from worker.catalog.interface.sizes import size_bounds
from worker.core.answer import PlanReport, Preloaded, Unloaded, WorkerStatus
from worker.core.errors import EngineFailure
from worker.core.result import Emit
from worker.remote.asking import Asker
from worker.remote.outlook import outlook
from worker.remote.placement import place, refusals
from worker.service.accepting.judging import Judge
from worker.service.accepting.resolving import ModelResolver
from worker.service.introspection.answers import with_what_is_known
from worker.service.limits.admission import Load
from worker.service.limits.pools import Pool
from worker.store.store import Store
from worker.wire.introspection import decode_preloaded

_GIB = 2**30


class FleetIntrospection:
    """Answers for the fleet. Of jobs nothing here is sent anywhere; loads are passed on to the workers."""

    def __init__(
        self,
        resolver: ModelResolver,
        store: Store,
        asker: Asker,
        load: Callable[[], Load],
        headers: Pool,
        judge: Judge,
    ) -> None:
        self._resolver = resolver
        self._store = store
        self._members = asker.members
        self._needs = asker.needs
        self._headers = headers
        self._judge = judge
        self._load = load
        self._asker = asker

    @property
    def obstacle(self) -> str | None:
        """A sentence where no replica answers; None where one does."""
        states = self._members.states()
        if any(state.health != "resting" for state in states):
            return None
        return f"None of the {len(states)} workers behind this gateway answers."

    async def plan(self, model: str | None) -> PlanReport:
        """Say where `model` would run now, and why there."""
        return await self.plan_of(await self._known(model))

    async def kind_of_device(self) -> str:
        """Return the tiers of the fleet, and a digest of what is known beside them."""
        tiers = {f"{state.tier} {state.vram_bytes}" for state in self._members.states()}
        return " ".join([*sorted(tiers), self._judge.mark])

    async def plan_of(self, known: Model) -> PlanReport:
        """Say where a model that is known already would run now, and why there."""
        return await with_what_is_known(await self._planned(known), known, self._judge)

    async def _planned(self, known: Model) -> PlanReport:
        spec, detection = known.spec, known.detection
        host = "" if spec.source.is_local else spec.source.host
        outline = await self._headers.run(self._store.peek, spec.source, spec.variant, place=host)
        states = self._members.states()
        await self._needs.learn_of(known)
        needs = self._needs.of_model(known, self._members.seconds_for(spec.id))
        now = time.monotonic()
        choices = place(needs, states, now)
        tiers = {name: tier.vram_gb * _GIB for name, tier in self._resolver.registry.tiers.items()}
        row = architecture(detection.architecture) if detection.architecture else None
        reasons = [choice.reason for choice in choices[:1]] or [item.reason for item in refusals(needs, states)]
        return PlanReport(
            model=spec.id,
            architecture=detection.architecture,
            pipeline=detection.pipeline,
            tasks=known.tasks,
            revision=outline.revision,
            weight_bytes=outline.weight_bytes or 0,
            native_size=size_bounds(known).native,
            device=choices[0].replica if choices else "none",
            free_bytes=max((state.vram_bytes or 0 for state in states), default=0),
            fits=bool(choices),
            reason="; ".join(reasons),
            family=row.title if row else None,
            tiers=outlook(needs, states, tiers, now),
        )

    def status(self) -> WorkerStatus:
        """Report if a replica answers, what is sent out and what is resident anywhere."""
        load, states = self._load(), self._members.states()
        running = [f"{state.jobs_running} at {state.name}" for state in states if state.jobs_running]
        return WorkerStatus(
            status="starting" if self.obstacle else "ready",
            version=__version__,
            running=", ".join(running) or None,
            jobs_running=load.running,
            jobs_queued=load.queued,
            resident_models=tuple(sorted({model for state in states for model in state.resident})),
            models=len(self._resolver.registry.models),
        )

    def is_resident(self, model: str) -> bool:
        """True if this model of the registry is on the device of a replica."""
        return any(self._resolver.registered_id(model) in state.resident for state in self._members.states())

    async def check(self, model: str) -> None:
        """Check that `model` is known; its files are the replicas' business."""
        self._resolver.resolve(model)

    async def preload(self, model: str | None, emit: Emit) -> Preloaded:
        """Have the worker load `model` that would do a job for it soonest."""
        known = await self._known(model)
        fields = {"action": "preload", "model": known.spec.served_name}
        replica, answer = await self._asker.ask(known, fields, f"preload-{uuid.uuid4().hex}", emit)
        try:
            return decode_preloaded(answer, replica)
        except ValueError:
            raise EngineFailure(
                f"The answer of the worker {replica} cannot be read; it is of another version."
            ) from None

    async def unload(self, model: str | None) -> Unloaded:
        """Have every worker unload `model` that has it on its device."""
        spec = self._resolver.resolve(model)
        fields = {"action": "unload", "model": spec.id}
        answers = await self._asker.ask_holders(spec.id, fields, f"unload-{uuid.uuid4().hex}")
        return Unloaded(spec.id, any(answer.get("unloaded") is True for answer in answers))

    async def _known(self, model: str | None) -> Model:
        resolved, place_ = self._resolver.resolve(model), self._resolver.host_of(model)
        return await self._headers.run(self._resolver.known, resolved, place=place_)
