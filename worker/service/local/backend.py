"""The backend of this machine's own device: a job's files outside, its pipeline inside the engine's thread."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress

from worker.core.job import Batch, Job
from worker.core.result import Emit, JobResult, Stage, Timings
from worker.service.local.batching import BatchMux
from worker.service.local.engine_thread import uninterrupted
from worker.service.local.provisioning import Provisioner
from worker.service.local.results import bytes_downloaded, result_of


class LocalBackend:
    """Answers jobs on this machine's own device."""

    def __init__(self, provisioner: Provisioner, mux: BatchMux) -> None:
        self._provisioner = provisioner
        self._mux = mux

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job`. When it is cancelled, this returns only once nothing works for it alone any more."""
        started = time.monotonic()
        batch = await _through(self._provisioner.provide(job, emit), job)
        provided = time.monotonic()
        drawn = await self._mux.draw(batch, emit)
        loaded = drawn.begun + drawn.built_s + drawn.report.load_s  # the first job also waits for the engine itself
        stages = (
            Stage("queue", job.accepted_at, started),
            Stage("download" if bytes_downloaded(batch) else "provide", started, provided),
            Stage("queue", provided, drawn.begun),
            Stage("load", drawn.begun, loaded),
            Stage("inference", loaded, loaded + drawn.report.inference_s),
        )
        return result_of(job, batch, drawn, Timings.of(stages, len(drawn.report.outcomes)))


async def _through(work: Awaitable[Batch], job: Job) -> Batch:
    """Await provisioning; on cancellation stop the download and wait until its thread is out."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        job.stop.cancel()
        with suppress(Exception):  # nobody is left to tell
            await uninterrupted(task)
        raise
