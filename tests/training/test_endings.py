"""Ends that nobody asked for, and those that measuring asks for: what is left, what is delivered, and the way on."""

import errno
import itertools
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.training.test_jobs import FEW, PROMPT, ask, weights, zipped
from worker.app.build import build_worker
from worker.core.errors import DeviceLost, DiskFull, InvalidRequest, OutOfMemory, Overloaded
from worker.training import checkpoint, run
from worker.training.checkpoint import keep_last
from worker.training.failures import of_device
from worker.training.run import TrainingRun
from worker.training.trainer import Trainer


@pytest.fixture
def trains(settings):
    """A function that builds a worker which trains."""
    return lambda: build_worker(settings.model_copy(update={"training": "shared"}))


@pytest.mark.slow
async def test_the_best_checkpoint_is_delivered_once_patience_is_at_its_end(trains, images, settings, monkeypatch):
    worker, measured, losses = trains(), [], itertools.chain([3.0, 2.0, 2.5], itertools.repeat(2.2))

    def measure(trainer):
        measured.append({key: value.numpy().tobytes() for key, value in trainer.learner.weights().items()})
        return next(losses)

    monkeypatch.setattr(Trainer, "held_out_loss", measure)
    job = FEW | {"data": zipped(images), "save_every": 1, "steps": 9, "decay": "constant", "held_out": 0.25, "ema": 0.5}
    answer = await ask(worker, job | {"name": "best", "patience": 3})
    assert (answer["done"], answer["steps"], answer["delivered_step"], answer["held_out_loss"]) == (True, 5, 2, 2.0)
    assert "ended after step 5 of 9" in answer["warnings"][0]
    assert len(measured) == 5
    loaded = await ask(worker, {"prompt": PROMPT, "loras": ["best"]})
    assert loaded["loras"][0]["matched"] == loaded["loras"][0]["total"]
    page = (settings.volume / "trained/best/README.md").read_text()
    assert "after 2 of 9 steps" in page
    assert "step 2 | 2.0000" in page
    await ask(worker, job | {"name": "two", "steps": 2})
    assert weights(settings.volume, "best") == weights(settings.volume, "two")
    delivered = sorted(weights(settings.volume, "two").values())
    assert delivered == sorted(measured[-1].values()), "what is measured is what is delivered"
    last = load_file(settings.volume / "trained/two/checkpoints/step-000002/adapter.safetensors").values()
    assert delivered != sorted(value.numpy().tobytes() for value in last), "which is the mean"
    again = await ask(worker, job | {"name": "best", "patience": 3})
    assert (again["steps"], again["resumed_at"], again["delivered_step"]) == (5, 5, 2)
    assert len(measured) == 7, "and nothing more was learnt"
    more = await ask(worker, job | {"name": "best", "patience": 5})
    assert (more["steps"], more["resumed_at"], more["delivered_step"]) == (7, 5, 2)


@pytest.mark.slow
async def test_who_lost_the_folder_during_a_step_keeps_nothing_of_it(trains, images, settings, monkeypatch):
    turn, folder = TrainingRun._turn, settings.volume / "trained/lost"

    def lost(training, *args):
        turn(training, *args)
        (training.folder / "lease").write_bytes(b"another worker")

    monkeypatch.setattr(TrainingRun, "_turn", lost)
    with pytest.raises(Overloaded, match="Another process trains"):
        await ask(trains(), FEW | {"data": zipped(images), "name": "lost", "save_every": 1})
    assert not (folder / "checkpoints").exists()
    assert not (folder / "lost.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("told", ["safetensors", "python"])
async def test_a_full_disk_leaves_the_last_checkpoint_and_goes_on_once_there_is_room(
    trains, images, settings, monkeypatch, told
):
    worker, folder, save, write = trains(), settings.volume / "trained/torn", checkpoint.save_file, Path.write_text
    job = FEW | {"data": zipped(images), "steps": 6}
    await ask(worker, job | {"name": "whole"})
    kept = []

    def full(tensors, path):
        if "step-000004" in str(path) and told == "safetensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path)

    def full_of_texts(path, text, *args, **kwargs):
        if "step-000004" in str(path) or (kept and "training" in path.name):
            write(path, text[: len(text) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(Path, "write_text", full_of_texts)
    monkeypatch.setattr(run, "keep_last", lambda *args: kept.append(args) or keep_last(*args))
    with pytest.raises(DiskFull, match="the checkpoint of step 2 stays: make room, and send the same request again"):
        await ask(worker, job | {"name": "torn"})
    monkeypatch.undo()
    assert [each.name for each in (folder / "checkpoints").iterdir()] == ["step-000002"], "nor half of another"
    drawn = await ask(worker, {"prompt": PROMPT, "loras": ["torn"]})
    assert drawn["loras"][0]["matched"] == drawn["loras"][0]["total"]
    answer = await ask(worker, job | {"name": "torn"})
    assert (answer["resumed_at"], answer["done"]) == (2, True)
    assert weights(settings.volume, "torn") == weights(settings.volume, "whole")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "the last checkpoint stays.*smaller batch_size"),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLost, "being replaced"),
        (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
        (InvalidRequest("a refusal"), InvalidRequest, "a refusal"),
    ],
)
def test_what_the_device_raises_is_told_with_what_is_left(error, kind, words):
    told = of_device(error)
    assert type(told) is kind
    assert re.search(words, str(told))
