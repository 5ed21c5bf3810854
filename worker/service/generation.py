"""From a request to a job, and from a job to its result: a generation is accepted before anything is loaded."""

import asyncio
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
from worker.service.accepting.acceptance import Acceptor
from worker.service.accepting.fallback import replacements
from worker.service.limits.admission import Admission
from worker.service.limits.quotas import Quotas, Reservation
from worker.service.usage.telemetry import accepted


class GenerationService:
    """Accepts requests and has them generated."""

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

        `caller` is whoever a door knows to have sent it, for his quotas.
        """
        self.check_open(caller)  # before anything is read or fetched for it
        with self._quotas.reserve(caller) as reservation:
            return await self._run(request, job_id, emit, reservation)

    def check_open(self, caller: str | None) -> None:
        """Refuse what would be refused whatever it is. Raises Overloaded and its kin, ShuttingDown."""
        self.admission.check_open()
        self._quotas.check(caller)

    async def _run(self, request: GenerationRequest, job_id: str, emit: Emit, reservation: Reservation) -> JobResult:
        try:
            return await self._attempt(request, job_id, emit, reservation)
        except WorkerError as error:
            for other in replacements(request, error, self._acceptor.resolver):
                # A stand-in that fails too leaves the first failure to tell: that is of what was asked for.
                with suppress(InvalidRequest, SourceError, AccessDenied, LoadFailed, OutOfMemory):
                    result = await self._attempt(other.request, job_id, emit, reservation)
                    return replace(result, warnings=(other.warning, *result.warnings))
            raise

    async def _attempt(
        self, request: GenerationRequest, job_id: str, emit: Emit, reservation: Reservation
    ) -> JobResult:
        def told(progress: Progress) -> None:
            reservation.note(progress)
            emit(progress)

        job = await self.accept(request, job_id)
        accepted(job)
        work = self.admission.check_work(job)
        self.admission.check_open()  # it may have filled up meanwhile; and who is turned away pays nothing
        self._quotas.charge(reservation, work)
        async with self.admission.admitted(job):
            return await self._backend.generate(job, told)

    async def accept(self, request: GenerationRequest, job_id: str) -> Job:
        """Check everything that can be checked without weights. Raises InvalidRequest and its kin, naming the field."""
        return await asyncio.to_thread(self._acceptor.accept, request, job_id)
