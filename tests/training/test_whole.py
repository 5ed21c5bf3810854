"""Whole models: every weight of a denoiser is learnt, and the result is a model that serving has by its name."""

import base64
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.images import assert_differs, pixels
from tests.training.test_jobs import PROMPT, ask, sent
from worker.app.whole_models import check_room, too_large
from worker.core.device import DeviceInfo
from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.model import ModelFiles
from worker.core.training import TrainingOptions
from worker.store.tuned import TunedModels
from worker.training.checkpoint import Checkpoint

WHOLE = {"action": "train", "model": "tiny", "method": "full", "learning_rate": 0.002, "steps": 3, "save_every": 2}
SAME = {"num_inference_steps": 3, "guidance_scale": 4.0, "width": 64, "height": 64}


def mean(losses):
    return sum(losses) / len(losses)


def unet(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    return {key: value.numpy().tobytes() for key, value in tensors.items()}


def test_the_loss_falls_and_every_weight_of_the_denoiser_alone_is_learnt(trainer, tiny):
    before = {name: value.clone() for name, value in tiny("sd1").unet.state_dict().items()}
    made = trainer("sd1", method="full", batch_size=3, learning_rate=1e-3)
    losses = [made.step() for _ in range(12)]
    assert mean(losses[-4:]) < mean(losses[:4])
    after = made.denoiser.state_dict()
    assert after.keys() == before.keys()
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_going_on_from_a_checkpoint_whose_weights_are_a_link_ends_in_the_same_bits(trainer, tmp_path):
    options = {"method": "full", "batch_size": 2, "learning_rate": 1e-3, "ema": 0.9}
    whole, first = trainer(**options), trainer(**options)
    expected = [whole.step() for _ in range(4)]
    losses = [first.step() for _ in range(2)]
    first.learner.write(tmp_path / "model", {"training.step": "2"})
    first.checkpoint().write(tmp_path, tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    linked = tmp_path / "step-000002/adapter.safetensors"
    assert linked.stat().st_nlink == 2, "it takes no room twice"
    second = trainer(**options, checkpoint=Checkpoint.latest(tmp_path))
    assert losses + [second.step() for _ in range(2)] == expected
    ends = [each.learner.weights() for each in (whole, second)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


async def test_serving_has_it_by_its_name_and_plain_diffusers_draws_the_same(trains, images, settings):
    worker = trains()
    answer = await ask(worker, WHOLE | {"data": sent(images), "name": "mine", "samples": [PROMPT]})
    assert (answer["use"], answer["done"]) == ({"model": "mine"}, True)
    assert {"trained/mine/model/step-000003/model_index.json"} <= {each["path"] for each in answer["files"]}
    for file in answer["files"]:
        assert (settings.volume / file["path"]).is_file()
    asked = {"prompt": PROMPT, "seed": 0}
    mine, tiny = [await ask(worker, asked | {"model": name}) for name in ("mine", "tiny")]
    assert mine["model"] == "mine"
    assert_differs(pixels(mine), pixels(tiny))
    sample = (settings.volume / "trained/mine/samples/step-000003-1.png").read_bytes()
    assert (pixels({"image": base64.b64encode(sample).decode()}) == pixels(mine)).all()
    folder, base = TunedModels(settings.volume).find("mine")
    assert (folder.name, base) == ("step-000003", "tiny")
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    shared = "text_encoder/model.safetensors"
    assert (folder / shared).stat().st_ino == (settings.volume / "trained/mine/parts" / shared).stat().st_ino
    served = pixels(await ask(worker, asked | SAME | {"model": "mine"}))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(PROMPT, generator=torch.Generator().manual_seed(0), output_type="np", **SAME).images[0]
    assert np.abs(np.asarray(served) / 255 - plain).max() <= 1 / 255
    with pytest.raises(InvalidRequest, match="name tiny is that of a model"):
        await ask(worker, WHOLE | {"data": sent(images), "name": "tiny"})


@pytest.mark.slow
async def test_it_becomes_the_candidate_of_its_model_where_that_is_asked_for(trains, images):
    worker = trains()
    answer = await ask(worker, WHOLE | {"data": sent(images), "name": "mine", "candidate": True})
    assert answer["version"] == "v2"
    mine, candidate = [
        await ask(worker, {"model": model, "prompt": PROMPT, "seed": 3}) for model in ("mine", "tiny@candidate")
    ]
    assert candidate["image"] == mine["image"]


@pytest.mark.slow
async def test_stopped_after_each_step_it_ends_in_the_same_bits(trains, images, settings):
    worker, job = trains(), WHOLE | {"data": sent(images), "steps": 4, "save_every": 3}
    await ask(worker, job | {"name": "whole"})
    ends = []
    while not ends or not ends[-1]["done"]:
        ends.append(await ask(worker, job | {"name": "torn", "minutes": 1e-9}))
    assert len(ends) >= 4
    folders = [TunedModels(settings.volume).find(name)[0] for name in ("whole", "torn")]
    assert unet(folders[0]) == unet(folders[1])
    trained = settings.volume / "trained/torn"
    assert [each.name for each in trained.glob("checkpoints/*")] == ["step-000004"], "one is enough, and each is large"
    assert [each.name for each in sorted(trained.glob("model/*"))] == ["step-000003", "step-000004"]


@pytest.mark.slow
async def test_the_best_checkpoint_is_delivered_at_the_end_of_patience(trains, images, settings, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.4, 2.3])
    monkeypatch.setattr("worker.training.trainer.Trainer.held_out_loss", lambda trainer: next(losses))
    job = WHOLE | {"data": sent(images), "save_every": 1, "steps": 9, "held_out": 0.25, "ema": 0.5, "patience": 3}
    answer = await ask(trains(), job | {"name": "best"})
    assert (answer["steps"], answer["delivered_step"]) == (5, 2)
    assert TunedModels(settings.volume).find("best")[0].name == "step-000002"
    last = settings.volume / "trained/best/checkpoints/step-000005/adapter.safetensors"
    assert last.stat().st_nlink == 1, "the mean is delivered, and the steps go on from what they learnt"


async def test_a_family_that_is_too_large_is_refused_with_the_bytes_that_it_would_take(trains, images):
    worker = trains()
    for action in ("train", "train_plan"):
        with pytest.raises(UnsupportedModel, match=r"GB of its weights would take some .* GB of memory: train a LoRA"):
            await ask(worker, WHOLE | {"action": action, "model": "tiny-xl", "data": sent(images)})
    for change in ({"text_encoder": True}, {"precision": "fp8"}):
        with pytest.raises(InvalidRequest, match=f"{next(iter(change))} is for adapters"):
            await ask(worker, WHOLE | {"data": sent(images)} | change)
    assert not worker.engine.ready or not worker.engine.resident_models


def test_what_it_takes_is_said_in_gigabytes():
    assert "the 6.9 GB of its weights would take some 55.5 GB of memory" in too_large("x", "SDXL", 6_939_000_000)
    files = ModelFiles(Path("x"), 1, parameters={"unet": 860_000_000, "vae": 80_000_000})
    with pytest.raises(UnsupportedModel, match=r"takes 13.8 GB .* has 8.6 GB"):
        check_room("sd1", files, DeviceInfo("cuda", "Small", 8 * 2**30, 8 * 2**30))
    check_room("sd1", files, DeviceInfo("cuda", "Large", 24 * 2**30, 24 * 2**30))
    assert TrainingOptions(method="full").learning_rate == 1e-5
    assert TrainingOptions(method="full", learning_rate=2e-6).learning_rate == 2e-6


def test_the_newest_step_is_found_and_no_path_is_a_name(tmp_path):
    tuned = TunedModels(tmp_path)
    for step in (2, 4, 6, 8, 2):
        (tmp_path / f"in/step-{step:06d}/unet").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/step-{step:06d}/unet/a").write_text(str(step))
        tuned.put("mine", tmp_path / f"in/step-{step:06d}", "base")
        folder, base = tuned.find("mine")
        assert (folder.name, base, (folder / "unet/a").read_text()) == (f"step-{step:06d}", "base", str(step))
        assert len([*tuned.place("mine").glob("step-*")]) <= 2
    assert [tuned.find(name) for name in ("other", "../tuned/mine", "mine/step-000004", "")] == [None] * 4
