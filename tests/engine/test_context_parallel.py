"""A denoiser whose tokens are shared out between processes: the image of one process, and every end an orderly one."""

import asyncio
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.asking import perform
from tests.fakes.engine import fresh_id
from tests.images import pixels
from worker.app.build import build_worker
from worker.core.device import LoadPlan
from worker.core.errors import EngineFailure, ParameterOutOfRange, UnknownParameter, UnsupportedModel
from worker.engine.context_parallel import check_parallel
from worker.engine.loader import load_pipeline


def worker_of(settings, zoo, tmp_path, name="flux"):
    row = {"source": f"file:{zoo}/models/{name}", "defaults": {"num_inference_steps": 2, "width": 64, "height": 64}}
    rows = {"alone": row, "shared": row | {"context_parallel": 2}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": rows}))
    changes = {"models_yaml": tmp_path / "models.yaml", "default_model": "alone", "allowed_model_dirs": (zoo,)}
    return build_worker(settings.model_copy(update=changes))


async def draw(worker, emit=lambda progress: None, **fields):
    return await perform(worker, {"prompt": "a frog", "seed": 7, **fields}, fresh_id(), emit)


async def cancelled_midway(worker):
    """Cancel a job after its second step."""
    steps, loop = [], asyncio.get_running_loop()

    def emit(progress):
        if progress.phase == "inference" and progress.step == 2:
            loop.call_soon_threadsafe(job.cancel)
        steps.append(progress.step)

    job = asyncio.create_task(draw(worker, emit, model="shared", num_inference_steps=40))
    with pytest.raises(asyncio.CancelledError):
        await job
    assert max(steps) < 40


def children():
    """The processes that this one has started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z" and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("pipeline", "device", "words"),
    [
        (
            "StableDiffusionPipeline",
            "cpu",
            "no plan for sharing out the tokens of a StableDiffusionPipeline's denoiser",
        ),
        ("FluxPipeline", "cuda", "needs as many GPUs, and this worker has 0"),
        ("FluxPipeline", "mps", "needs as many GPUs"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_a_weight_is_read(pipeline, device, words):
    plan = LoadPlan(Path("/nowhere"), pipeline, "float32", device, "none", 0, 0, ranks=2)
    with pytest.raises(UnsupportedModel, match=words) as failure:
        load_pipeline(plan)
    assert failure.value.field == "model"


def test_classes_that_diffusers_has_a_plan_for_are_taken():
    for pipeline in ("FluxPipeline", "FluxImg2ImgPipeline", "WanPipeline", "Flux2Pipeline"):
        check_parallel(LoadPlan(Path("/nowhere"), pipeline, "float32", "cpu", "none", 0, 0, ranks=2))


@pytest.mark.slow
async def test_the_image_of_two_processes_is_that_of_one_and_a_lost_process_is_replaced(settings, zoo, tmp_path):
    worker = worker_of(settings, zoo, tmp_path)
    alone = pixels(await draw(worker, model="alone")).astype(int)
    shared = pixels(await draw(worker, model="shared")).astype(int)
    assert np.abs(alone - shared).max() <= 1
    (child,) = children()
    # A job that stops between two steps leaves the other process as it was.
    await cancelled_midway(worker)
    assert np.array_equal(pixels(await draw(worker, model="shared")), shared)
    assert children() == [child]
    with pytest.raises(ParameterOutOfRange, match="number of tokens"):
        await draw(worker, model="shared", width=80, height=80)
    assert np.array_equal(pixels(await draw(worker, model="shared")), shared)
    os.kill(child, signal.SIGKILL)
    with pytest.raises(EngineFailure, match="started anew with the next job") as failure:
        await draw(worker, model="shared")
    assert failure.value.retryable
    assert children() == []
    assert np.array_equal(pixels(await draw(worker, model="shared")), shared)
    assert len(children()) == 1
    with pytest.raises(UnknownParameter, match="shared out between processes"):
        await draw(worker, model="shared", loras=[f"file:{zoo}/models/lora.safetensors"])
    assert np.array_equal(pixels(await draw(worker, model="alone")), alone)
    assert children() == []
