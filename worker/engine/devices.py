"""Devices: the choice of one, its memory, and the meaning of its errors."""

import gc
from dataclasses import replace
from typing import Literal

import torch

from worker.core.device import Card, DeviceInfo, LoadPlan
from worker.core.errors import DeviceLost, EngineFailure, OutOfMemory
from worker.engine.machine import ram

# CUDA errors after which every further call in this process fails.
_STICKY = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "uncorrectable ecc",
    "cudnn_status_internal_error",
    "cublas_status_not_initialized",
    "device is lost",
    "gpu has fallen off the bus",
    "no cuda-capable device",
)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def choose_device(wanted: Literal["auto", "cpu", "cuda", "mps"]) -> torch.device:
    """Return the device to run on. Raises DeviceLost when the wanted one cannot be used."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[wanted]:
        raise DeviceLost(f"DEVICE is {wanted} and torch {torch.__version__} cannot use it here; check the driver.")
    return torch.device(wanted)


def probe(device: torch.device) -> DeviceInfo:
    """Return name and memory of `device`, as of now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # Memory that torch keeps cached is free for the next load.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceInfo("cuda", torch.cuda.get_device_name(device), total, free + cached)
    total, free = ram()
    return DeviceInfo("mps" if device.type == "mps" else "cpu", device.type.upper(), total, free)


def probe_all(device: torch.device) -> DeviceInfo:
    """Return the same with every GPU of this process. Each is initialized for that, which takes some of its memory."""
    if device.type != "cuda":
        return probe(device)
    first, *others = [probe(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
    cards = tuple(Card(each.name, each.total_bytes, each.free_bytes) for each in (first, *others))
    return replace(first, cards=cards)


class RankLost(RuntimeError):
    """Of the processes that share out a denoiser's tokens some ended, which its text names, or one took too long."""


def least_free(device: DeviceInfo, plan: LoadPlan) -> int:
    """Return the free bytes of the device that has least, of those that a model is on: `device`, or others too."""
    return min([device.free_bytes, *(device.cards[number].free_bytes for number in {*plan.cards.values()})])


def release_memory() -> None:
    """Give cached memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Start measuring peak memory anew."""
    for number in range(torch.cuda.device_count() if device.type == "cuda" else 0):
        torch.cuda.reset_peak_memory_stats(number)


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory since the last reset, in GiB, of all GPUs together; 0 where it is not measured."""
    numbers = range(torch.cuda.device_count() if device.type == "cuda" else 0)
    return float(sum(torch.cuda.max_memory_allocated(number) for number in numbers)) / 2**30


def is_out_of_memory(error: BaseException) -> bool:
    """True if `error` means that memory ran out; not all of torch raises its own class for that."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    )


def device_failure(error: BaseException, words: str | None = None) -> EngineFailure:
    """Return our error for one that the device or the pipeline raised.

    The text of `error` stays out of the message; `words` are what a caller may read of it.
    """
    text = str(error).lower()
    if any(mark in text for mark in _STICKY):
        return DeviceLost("The GPU reported an error that only a new process can clear; this worker is being replaced.")
    if isinstance(error, RankLost):
        return EngineFailure(
            f"{error} of the processes that generate together ended, or took too long; they are started anew with the "
            "next job: send it again.",
            retryable=True,
        )
    if is_out_of_memory(error):
        return OutOfMemory(
            "The device ran out of memory, also with smaller working buffers; "
            "ask for a smaller width and height, fewer num_images, or use a device with more memory."
        )
    said = f": {words}" if words else ""
    return EngineFailure(
        f"The pipeline failed with {type(error).__name__}{said}; the job's parameters may not suit this model.",
        details={"exception": type(error).__name__},
    )
