"""F19: LoRAs and models that change all the time leave nothing behind: memory and objects stay what they were.

What stays on purpose has a bound: the headers of the last 64 LoRA files (`service/local/weights.py`), some 35 objects
for a file of a tiny model. So with other LoRAs each time the count grows until there were 64, and no further.
"""

import asyncio
import ctypes
import gc
import itertools
from pathlib import Path

import pytest
import torch

from tests import builders
from tests.asking import perform
from tests.faults.measuring import measured
from worker.app.build import Worker, build_worker
from worker.app.settings import Settings

LORAS = 3
COUNTS = {"LoRAs": 150, "models": 30}
_ids = itertools.count()
_workers: dict[str, Worker] = {}


def _worker(zoo: str) -> Worker:
    """Run in a child: the worker, the same for every call; of models and of LoRAs it keeps one."""
    if zoo not in _workers:
        _workers[zoo] = build_worker(
            Settings(
                models_yaml=Path(zoo) / "models.yaml",
                default_model="tiny",
                volume_dir=Path(zoo) / "f19",
                device="cpu",
                warm_up=False,
                resident_loras=1,
                max_resident_models=1,
                ram_tier_gb=0,
            )
        )
    return _workers[zoo]


async def _draw(worker: Worker, fields: dict[str, object]) -> None:
    job = {"prompt": "x", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 1, "progress": False}
    await perform(worker, job | fields, f"job-{next(_ids)}")


def changed(told: str) -> tuple[int, float]:
    """Run in a child: change so many times; the objects, and the MB of weights, that there are more of after that."""
    zoo, kind, count = told.split("|")
    worker = _worker(zoo)
    before, weights = _objects(), _weights_mb()

    async def work() -> None:
        for number in range(int(count)):
            if kind in ("LoRAs", "both"):
                await _draw(worker, {"loras": [f"file:{zoo}/models/f19-{number % LORAS}.safetensors"]})
            if kind in ("models", "both"):
                await _draw(worker, {"model": ("tiny-xl", "tiny")[number % 2]})

    asyncio.run(work())
    return _objects() - before, _weights_mb() - weights


def _weights_mb() -> float:
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) / 2**20


def _objects() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is given back, so that only what is kept counts
    return len(gc.get_objects())


@pytest.mark.slow
@pytest.mark.timeout(600)  # 180 jobs
def test_what_changes_all_the_time_stays_as_large_as_it_was(zoo, figures):
    for seed in range(LORAS):
        builders.lora_for(zoo / "models/sd1", zoo / f"models/f19-{seed}.safetensors", dialect="diffusers", seed=seed)
    told = [f"{zoo}|{kind}|{count}" for kind, count in COUNTS.items()]
    results = measured(f"{__name__}:changed", f"{zoo}|both|12", told, timeout_s=500)
    for (kind, count), result in zip(COUNTS.items(), results, strict=True):
        figures("F19", f"memory kept after {count} changes of {kind}", result["kept"], "MB", at_most=10, momentary=True)
        objects, weights = result["outcome"]
        figures("F19", f"weights kept after {count} changes of {kind}", weights, "MB", at_most=1)
        figures("F19", f"objects kept for a change of {kind}", objects / count, "", at_most=5)
