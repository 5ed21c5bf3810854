"""The memory of the process: when Python searches it for garbage, and when what is free goes back to the system.

A full search holds up every thread, the event loop's too, for as long as there are objects: a quarter of a second once
torch and diffusers are imported. A job leaves nothing that has to be searched for, so searches may be few.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

from worker.service.limits.pools import Pool

# Full searches come so many times more rarely than Python would have them.
_RARER = 10
_LOOK_EVERY_S = 10.0
_IDLE_LOOKS = 3  # without a job, before memory is given back
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 32 * 2**20  # as much as glibc comes to by itself where large blocks are freed


def settle() -> None:
    """Leave what exists now, modules above all, out of every later search for garbage. To be called before models."""
    youngest, young, _ = gc.get_threshold()
    gc.set_threshold(youngest, young, 10 * _RARER)
    gc.collect()
    gc.freeze()


def keep_buffers() -> None:
    """Have the C library keep what a job's buffers took for the next one, until `tidy` gives it back; only glibc's can.

    A gateway passes bodies of a megabyte on. Given back at once, each would come again page by page: 3 ms a job.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(option, _KEPT_BYTES)


async def tidy(jobs_taken: Callable[[], int], jobs_inside: Callable[[], int], pool: Pool) -> None:
    """Search for garbage, and give free memory back, each time that jobs were taken and there has been none since.

    This runs until it is cancelled. `jobs_taken` counts those that ever were, `jobs_inside` those that are.
    """
    settle()
    tidied = seen = jobs_taken()
    idle_looks = 0
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        taken = jobs_taken()
        idle_looks = idle_looks + 1 if taken == seen and not jobs_inside() else 0
        seen = taken
        if taken != tidied and idle_looks >= _IDLE_LOOKS:
            tidied = taken
            gc.collect()
            await pool.run(_give_back)


def _give_back() -> None:
    """Have the C library give back what it keeps for the next job; only glibc's can."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
