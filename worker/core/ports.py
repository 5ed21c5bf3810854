"""The two interfaces between the parts of the worker. A third needs a strong reason."""

from typing import Protocol

from worker.core.job import Batch, Job
from worker.core.result import Emit, EngineReport, JobResult


class Backend(Protocol):
    """The part that answers one job, on this machine or elsewhere."""

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job` to its result; `emit` may be called from any thread. Raises WorkerError only."""
        ...


class Engine(Protocol):
    """The part that runs one batch on the device. It blocks, and is called from one thread only."""

    def run(self, batch: Batch, emit: Emit) -> EngineReport:
        """Run the first jobs of `batch`, as many as one call takes and at least one; the rest are for a further run.

        Raises WorkerError only, and then nothing was generated; an error of one job alone is its outcome in the
        report. OutOfMemory for several jobs means that fewer may fit: the model stays loaded.
        """
        ...
