"""The trial of one lever: the same requests drawn without and with it, compared by their pixels and by time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.core.errors import DeviceLost, JobCancelled, JobTimeout
from worker.core.image import Raster
from worker.core.job import Batch
from worker.engine.devices import device_failure
from worker.engine.levers.bounds import LEAST_PSNR_DB, MOST_TIME, psnr_db
from worker.engine.levers.decisions import Decision, finite
from worker.engine.levers.row import Lever, compatible

# Draws a batch with these levers and no other; returns its images, and the seconds that the call took.
Draw = Callable[[Batch, Sequence[Lever]], tuple[tuple[Raster, ...], float]]


@dataclass(slots=True)
class Reference:
    """A job that was done, and its plain images; None where it was drawn with levers. In memory only."""

    batch: Batch
    plain: tuple[Raster, ...] | None


def prove(lever: Lever, base: Sequence[Lever], references: Sequence[Reference], draw: Draw) -> Decision:
    """Decide on `lever`, on top of the levers `base`, by the jobs of `references`, of which there is at least one.

    Raises JobCancelled or JobTimeout where the trial has to stop, and DeviceLost. Any other failure is the lever's.
    """
    made: list[Decision] = []
    failure = failure_of(lambda: made.append(_proven(lever, base, references, draw)))
    return failure or made[0]


def failure_of(attempt: Callable[[], object]) -> Decision | None:
    """Return the decision on a lever with which `attempt` failed, None where it did not.

    Raises JobCancelled, JobTimeout and DeviceLost: none of them is a lever's failure alone.
    """
    try:
        attempt()
    except (JobCancelled, JobTimeout, DeviceLost):
        raise
    except BaseException as error:  # a library's SystemExit too
        error.__traceback__ = None  # its frames hold the tensors
        failure = device_failure(error)
        if isinstance(failure, DeviceLost):
            raise failure from None
        return Decision("off", f"it failed with {type(error).__name__}", failed=True)
    return None


def _proven(lever: Lever, base: Sequence[Lever], references: Sequence[Reference], draw: Draw) -> Decision:
    levers = compatible((*base, lever))
    worst = math.inf
    for reference in references:
        if reference.plain is None:
            reference.plain, _ = draw(reference.batch, ())
        images, _ = draw(reference.batch, levers)  # the first one makes it ready, and is not timed
        worst = min(worst, psnr_db(images, reference.plain))
    least = math.inf if lever.bit_equal else LEAST_PSNR_DB[lever.tier]
    if worst < least:
        bound = "bit-equal images" if lever.bit_equal else f"{least:g} dB"
        return Decision("off", f"its image is {worst:.1f} dB from the plain one, where {bound} are asked for", worst)
    first = references[0].batch
    without, with_it = [], []
    for _ in range(2):  # in turn: what slows the machine down slows both
        without.append(draw(first, base)[1])
        with_it.append(draw(first, levers)[1])
    gain = min(without) / max(min(with_it), 1e-9)
    shown = finite(worst)
    if min(with_it) > MOST_TIME * min(without):
        return Decision("off", f"it is not faster: {gain:.2f} times", shown, gain)
    return Decision("on", f"{gain:.2f} times as fast", shown, gain)
