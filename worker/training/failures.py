"""What ended a training that nobody asked to end: said with what is left of it, and how to go on."""

import errno
import re

from worker.core.errors import DiskFull, OutOfMemory, WorkerError
from worker.engine.devices import device_failure

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_IN_WORDS = re.compile(rf"os error ({errno.ENOSPC}|{errno.EDQUOT})\b")  # as safetensors tells it


def of_device(error: Exception) -> Exception:
    """Return our error for one of the device's, memory that ran out or a device that is lost; others as they are."""
    if isinstance(error, WorkerError) or not isinstance(error, RuntimeError | MemoryError):
        return error
    ours = device_failure(error)
    if isinstance(ours, OutOfMemory):
        return OutOfMemory(
            "The device ran out of memory in a training: the last checkpoint stays. The same request goes on from it "
            "on a device with more memory; else send it under another name with a smaller batch_size or resolution."
        )
    return ours if not ours.details else error


def of_disk(error: Exception, kept_at: int) -> Exception:
    """Return our error for a full disk, after a checkpoint at step `kept_at`; others as they are."""
    is_full = isinstance(error, OSError) and error.errno in _FULL
    if not is_full and not _FULL_IN_WORDS.search(str(error)[-200:]):
        return error
    left = f"the checkpoint of step {kept_at} stays" if kept_at else "there was no checkpoint yet"
    return DiskFull(
        f"The volume is full, and {left}: make room, and send the same request again; it goes on from there."
    )
