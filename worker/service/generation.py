"""Generation: from a request to a job, and from a job to its result. A job is accepted before anything is loaded."""

from contextlib import suppress
from dataclasses import replace

from worker.core.errors import (
    AccessDenied,
    InvalidRequest,
    LoadFailed,
    OutOfMemory,
    SourceError,
    WorkerError,
)
from worker.core.job import Job
from worker.core.ports import Backend
from worker.core.request import GenerationRequest
from worker.core.result import Emit, JobResult, Progress
from worker.core.turn import begun
from worker.service.accepting.acceptance import Acceptor
from worker.service.accepting.fallback import replacements
from worker.service.limits.admission import Admission
from worker.service.limits.quotas import Quotas, Reservation
from worker.service.usage.telemetry import accepted


class GenerationService:
    """Accepts requests and has the backend generate them."""

    def __init__(
        self,
        acceptor: Acceptor,
        backend: Backend,
        admission: Admission,
        quotas: Quotas,
    ) -> None:
        self._acceptor = acceptor
        self._backend = backend
        self.admission = admission
        self._quotas = quotas

    async def generate(
        self, request: GenerationRequest, job_id: str, emit: Emit, caller: str | None = None
    ) -> JobResult:
        """Accept and run one job.

        `caller` is the name of the sender as the door knows it, for their quotas.
        """
        self.check_open(caller)  # before anything is read or fetched for it
        with begun(caller) as turn, self.admission.admitted(turn), self._quotas.reserve(caller) as reservation:
            return await self._run(request, job_id, emit, reservation)

    def charge_question(self, caller: str | None) -> None:
        """Count a question about models or the worker as a request of `caller`. Raises RateLimited."""
        self._quotas.charge_question(caller)

    def check_open(self, caller: str | None) -> None:
        """Refuse now if every job of `caller` would be refused. Raises Overloaded and its subclasses, ShuttingDown."""
        self.admission.check_open()
        self._quotas.check(caller)

    async def _run(self, request: GenerationRequest, job_id: str, emit: Emit, reservation: Reservation) -> JobResult:
        try:
            return await self._attempt(request, job_id, emit, reservation)
        except WorkerError as error:
            for replacement in replacements(request, error, self._acceptor.resolver):
                # When a fallback fails too, the first failure is raised: it is of the model that was asked for.
                with suppress(InvalidRequest, SourceError, AccessDenied, LoadFailed, OutOfMemory):
                    result = await self._attempt(replacement.request, job_id, emit, reservation)
                    return replace(result, warnings=(replacement.warning, *result.warnings))
            raise

    async def _attempt(
        self, request: GenerationRequest, job_id: str, emit: Emit, reservation: Reservation
    ) -> JobResult:
        def note_and_emit(progress: Progress) -> None:
            reservation.note(progress)
            emit(progress)

        job = await self.accept(request, job_id)
        accepted(job)
        work = self.admission.check_work(job)
        self._quotas.charge(reservation, work)
        return await self._backend.generate(job, note_and_emit)

    async def accept(self, request: GenerationRequest, job_id: str) -> Job:
        """Check all that needs no weights. Raises InvalidRequest and its subclasses, naming the field."""
        return await self._acceptor.accept(request, job_id)
