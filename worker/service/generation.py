"""Generation: from a request to a job, and from a job to its result. A job is accepted before anything is loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from worker.core.errors import (
    AccessDenied,
    InvalidRequest,
    LoadFailed,
    OutOfMemory,
    SourceError,
    WorkerError,
)
from worker.core.finishing import OWN
from worker.core.job import Job
from worker.core.ports import Backend
from worker.core.request import GenerationRequest
from worker.core.result import Emit, JobResult, Progress, ignore_progress
from worker.core.turn import begun
from worker.media.video import Given
from worker.service.accepting.acceptance import Acceptor
from worker.service.accepting.fallback import replacements
from worker.service.accepting.judging import Judge
from worker.service.limits.admission import Admission
from worker.service.limits.quotas import Quotas, Reservation
from worker.service.usage.telemetry import accepted

# Failures of a model that stands in, after which the next one is tried.
_OF_THE_REPLACEMENT = (InvalidRequest, SourceError, AccessDenied, LoadFailed, OutOfMemory)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the id of its job. `given` are media of it that were made here, by the texts in their place."""

    request: GenerationRequest
    job_id: str
    given: Mapping[str, Given] = field(default_factory=dict)


class GenerationService:
    """Accepts requests and has the backend generate them."""

    def __init__(
        self,
        acceptor: Acceptor,
        backend: Backend,
        admission: Admission,
        quotas: Quotas,
        judge: Judge,
    ) -> None:
        self.acceptor = acceptor
        self.judge = judge
        self._backend = backend
        self.admission = admission
        self._quotas = quotas

    async def generate(
        self, request: GenerationRequest, job_id: str, emit: Emit, caller: str | None = None
    ) -> JobResult:
        """Accept and run one job.

        `caller` is the name of the sender as the door knows it, for their rights and quotas.
        """
        self.check_rights(request, caller)
        with self.entered(caller) as reservation:
            return await self.run(Asked(request, job_id), emit, reservation)

    @contextmanager
    def entered(self, caller: str | None) -> Iterator[Reservation]:
        """Enclose what one caller asks for, from before anything is read or fetched for it."""
        self.check_open(caller)
        with begun(caller) as turn, self.admission.admitted(turn), self._quotas.reserve(caller) as reservation:
            yield reservation
        turn.on_generated()

    def charge_question(self, caller: str | None) -> None:
        """Count a question about models or the worker as a request of `caller`. Raises RateLimited."""
        self._quotas.charge_question(caller)

    def check_open(self, caller: str | None) -> None:
        """Refuse now if every job of `caller` would be refused. Raises Overloaded and its subclasses, ShuttingDown."""
        self.admission.check_open(caller)
        self._quotas.check(caller)

    def check_right(self, model: str | None, caller: str | None) -> None:
        """Raise AccessDenied unless `caller` may use the model of this name; None is the default model."""
        self.admission.rights.check(caller, self.acceptor.resolver.id_of(model))

    def check_rights(self, request: GenerationRequest, caller: str | None) -> None:
        """Raise AccessDenied for a model that `caller` may not use. What a model brings along is the operator's own."""
        self.check_right(request.model, caller)
        for name, part in (("refiner", request.refiner), ("upscale", request.upscale)):
            if part is not None and part.model != OWN:
                self.admission.rights.check(caller, self.acceptor.resolver.id_of(part.model), name)

    async def run(self, asked: Asked, emit: Emit, reservation: Reservation, *, is_reserved: bool = False) -> JobResult:
        """Run one job inside `entered`, of another model if its own cannot be had and the request allows it.

        With `is_reserved`, what it costs was reserved before, with other jobs.
        """
        try:
            return await self._attempt(asked, emit, reservation, is_reserved)
        except WorkerError as error:
            for replacement in replacements(asked.request, error, self.acceptor.resolver):
                # When a fallback fails too, the first failure is raised: it is of the model that was asked for.
                with suppress(*_OF_THE_REPLACEMENT):
                    self.check_right(replacement.request.model, reservation.caller)
                    instead = replace(asked, request=replacement.request)
                    result = await self._attempt(instead, emit, reservation, is_reserved)
                    return replace(result, warnings=(replacement.warning, *result.warnings))
            raise

    async def run_aside(self, request: GenerationRequest, job_id: str, *, is_spare: bool = False) -> JobResult:
        """Run one job that stands in no caller's books; what encloses it may have others.

        A spare one is one that nobody waits for: it loads no model. Raises Overloaded for that.
        """
        job = await self.accept(request, job_id)
        return await self._backend.generate(replace(job, is_spare=is_spare), ignore_progress)

    async def foresee(self, asked: Asked) -> Job:
        """Return the job that `run` would begin with, and run nothing. Raises as `accept` does."""
        try:
            return await self._accept(asked)
        except WorkerError as error:
            for replacement in replacements(asked.request, error, self.acceptor.resolver):
                with suppress(*_OF_THE_REPLACEMENT):
                    return await self._accept(replace(asked, request=replacement.request))
            raise

    def reserve(self, reservation: Reservation, *jobs: Job) -> None:
        """Reserve what these jobs cost their caller, all together. Raises ParameterOutOfRange, QuotaExceeded."""
        self._quotas.charge(reservation, self.admission.check_work(*jobs))

    def spare(self, reservation: Reservation, pixel_steps: int) -> None:
        """Give back what was reserved and turned out not to be needed."""
        if pixel_steps:
            self._quotas.spare(reservation, pixel_steps)

    async def _attempt(self, asked: Asked, emit: Emit, reservation: Reservation, is_reserved: bool) -> JobResult:
        def note_and_emit(progress: Progress) -> None:
            reservation.note(progress)
            emit(progress)

        job = await self._accept(asked)
        accepted(job)
        if not is_reserved:
            self.reserve(reservation, job)
        result = await self._backend.generate(job, note_and_emit)
        return result if job.choice is None else replace(result, version=job.choice.version, arm=job.choice.arm)

    async def accept(self, request: GenerationRequest, job_id: str) -> Job:
        """Check all that needs no weights. Raises InvalidRequest and its subclasses, naming the field."""
        return await self._accept(Asked(request, job_id))

    async def _accept(self, asked: Asked) -> Job:
        return await self.judge.judged(await self.acceptor.accept(asked.request, asked.job_id, asked.given))
