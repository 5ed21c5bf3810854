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
        """Run `job`. On cancellation this returns only once no thread works for it alone any more."""
        started = time.monotonic()
        batch = await _through(self._provisioner.provide(job, emit), job)
        provided_at = time.monotonic()
        generated = await self._mux.generate(batch, emit)
        # The first job also waits for the engine itself.
        loaded = generated.begun + generated.built_s + generated.report.load_s
        stages = (
            Stage("queue", job.accepted_at, started),
            Stage("download" if bytes_downloaded(batch) else "provide", started, provided_at),
            Stage("queue", provided_at, generated.begun),
            Stage("load", generated.begun, loaded),
            Stage("inference", loaded, loaded + generated.report.inference_s),
        )
        return result_of(job, batch, generated, Timings.of(stages, len(generated.report.outcomes)))


async def _through(work: Awaitable[Batch], job: Job) -> Batch:
    """Await provisioning. On cancellation stop the download and wait until its thread has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        job.stop.cancel()
        with suppress(Exception):  # no caller is left to tell
            await uninterrupted(task)
        raise
