"""The backend of this machine's own device: a job's files outside, its pipeline inside the engine's thread."""

import time

from worker.core.errors import Overloaded
from worker.core.job import Job
from worker.core.result import Emit, JobResult, Stage, Timings
from worker.core.turn import current
from worker.service.limits.admission import Admission
from worker.service.limits.pools import Pools
from worker.service.local.batching import BatchMux
from worker.service.local.provisioning import Provisioner
from worker.service.local.results import bytes_downloaded, result_of


class LocalBackend:
    """Answers jobs on this machine's own device. A job takes a place of `admission` once it has its files."""

    def __init__(self, provisioner: Provisioner, pools: Pools, admission: Admission, mux: BatchMux) -> None:
        self._provisioner = provisioner
        self._pools = pools
        self._admission = admission
        self._mux = mux

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job`. At its deadline its caller is free; what cannot be interrupted goes on in its thread."""
        turn, host = current(), job.call.spec.source.host
        if job.is_spare and not self._provisioner.has_models(job):
            raise _not_here()
        # Hundreds of threads that look at files would leave the processor to nobody else.
        pool = self._pools.files if self._provisioner.is_at_hand(job) else self._pools.downloads
        batch = await pool.run(self._provisioner.provide, job, emit, place=host)
        started, provided_at = turn.waits[-1][1], time.monotonic()
        if job.is_spare and not self._mux.holds(batch):
            raise _not_here()
        async with self._admission.place(job.stop):
            generated = await self._mux.generate(batch, emit)
        # The first job also waits for the engine itself.
        loaded = generated.begun + generated.built_s + generated.report.load_s
        stages = (
            *(Stage("queue", asked_at, began) for asked_at, began in turn.waited if began <= job.accepted_at),
            Stage("queue", job.accepted_at, started),
            Stage("download" if bytes_downloaded(batch) else "provide", started, provided_at),
            Stage("queue", provided_at, generated.begun),
            Stage("load", generated.begun, loaded),
            Stage("inference", loaded, loaded + generated.report.inference_s),
        )
        return result_of(job, batch, generated, Timings.of(stages, len(generated.report.outcomes)))


def _not_here() -> Overloaded:
    return Overloaded("A model that is not on the device is not loaded for a job that nobody waits for.")
