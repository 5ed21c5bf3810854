"""One step towards faster models, while no job is there: a lever is tried, or one is made ready for a size."""

from collections.abc import Callable

from worker.core.job import Batch
from worker.core.turn import StopSignal
from worker.engine.levers.gate import Gate
from worker.engine.levers.proving import Draw
from worker.engine.pool import PipelinePool
from worker.engine.resident import Resident


def improve(pool: PipelinePool, gate: Gate, draw: Draw, reload: Callable[[Batch], Resident], stop: StopSignal) -> bool:
    """Take a step on the resident model that was used last and has one; False where none has.

    Raises JobCancelled at the next step of a call once `stop` says so, and DeviceLost.
    """
    for key, resident in reversed(pool.items):
        progressed = gate.improve(resident, stop, draw)
        if progressed == "failed" and pool.discard(key):
            # Whatever it left behind went with the pipeline; the next job shall find the model where it was.
            gate.carry_over(resident, reload)
        if progressed != "nothing to do":
            return True
    return False
