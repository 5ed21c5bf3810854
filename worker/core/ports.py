"""The two lines that divide the house. A third must prove itself."""

from typing import Protocol

from worker.core.job import Batch, Job
from worker.core.result import Emit, EngineReport, JobResult


class Backend(Protocol):
    """Answers one job, wherever it runs."""

    async def generate(self, job: Job, emit: Emit) -> JobResult:
        """Run `job` to its result; `emit` may be called from any thread. Raises WorkerError only."""
        ...


class Engine(Protocol):
    """Runs one batch on the device. Blocking; called from one thread only."""

    def run(self, batch: Batch, emit: Emit) -> EngineReport:
        """Draw the first jobs of `batch`, as many as one call takes and at least one; whoever is left is run again.

        Raises WorkerError only, and then nothing was drawn; an error of one job alone is its outcome in the report.
        OutOfMemory for several jobs says that fewer may fit: the model stays loaded.
        """
        ...
