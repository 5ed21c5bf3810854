"""ai-toolkit as another trainer: a small stand-in with its command line, YAML, lines and files is driven to the end."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from tests.training.test_jobs import FEW, ask, sent
from tests.waiting import until, until_true
from worker.app.settings import Settings
from worker.core.errors import (
    DiskFull,
    EngineFailure,
    IncompatibleAdapter,
    InvalidOutput,
    InvalidRequest,
    JobCancelled,
    OutOfMemory,
    UnsupportedModel,
)
from worker.core.training import TrainingOptions
from worker.training.ai_toolkit.config import Base, config, write_config
from worker.training.ai_toolkit.output import Reading
from worker.training.ai_toolkit.process import Running

FAKE = Path(__file__).parents[1] / "fakes/ai_toolkit_run.py"
JOB = FEW | {"trainer": "ai-toolkit", "name": "mine", "steps": 5}


@pytest.fixture
def toolkit(tmp_path, trains):
    """A folder with the stand-in, and a worker that has it. `behave` says what it is to do."""
    folder = tmp_path / "ai-toolkit"
    folder.mkdir()
    shutil.copy(FAKE, folder / "run.py")

    class Installed:
        """The installation."""

        path = folder

        def behave(self, **ways):
            (folder / "behave.json").write_text(json.dumps(ways))

        def worker(self, **changes):
            python = {"ai_toolkit": folder, "ai_toolkit_python": Path(sys.executable)}
            return trains(**python, **changes)

    return Installed()


async def test_its_lora_is_checked_delivered_and_told_of_like_one_of_ours(toolkit, images, settings, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    monkeypatch.setenv("API_KEYS", "another")
    worker, told = toolkit.worker(), []
    answer = await ask(worker, JOB | {"data": sent(images), "samples": ["a thing"], "trigger": "sks"}, told)
    assert (answer["done"], answer["steps"], answer["delivered_step"]) == (True, 5, 5)
    assert answer["loss"] == pytest.approx(1 / 5, rel=1e-3)
    assert [each.step for each in told if each.phase == "train"] == [1, 2, 3, 4, 5]
    assert all("learning rate 0.02" in each.message for each in told if each.phase == "train")
    drawn = await ask(worker, {"prompt": "a thing", "loras": ["mine"]})
    assert drawn["loras"][0]["matched"] == drawn["loras"][0]["total"] > 0
    folder = settings.volume / "trained/mine"
    with safe_open(folder / "mine.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["training.trainer"], facts["modelspec.trigger_phrase"], facts["training.step"]) == (
        "ai-toolkit",
        "sks",
        "5",
    )
    assert "after 5 of 5 steps" in (folder / "README.md").read_text()
    assert {each.name[5:11] for each in (folder / "samples").iterdir()} == {"000000", "000005"}
    assert (folder / "loss.png").exists()
    environment = json.loads((toolkit.path / "environment.json").read_text())
    assert "a secret" not in environment.values()
    assert not {"HF_TOKEN", "API_KEYS", "RUNPOD_API_KEY"} & environment.keys()
    assert not (folder / "lessons").exists(), "what was sent is not kept"


async def test_a_cancel_keeps_the_last_save_and_the_same_request_goes_on_from_it(toolkit, images, settings):
    toolkit.behave(pause_at=3, pause_s=60)
    worker = toolkit.worker()
    task = asyncio.ensure_future(ask(worker, JOB | {"data": sent(images)}))
    await until_true(lambda: (toolkit.path / "pauses").exists())
    task.cancel()
    with pytest.raises((JobCancelled, asyncio.CancelledError)):
        await task
    pid = int((toolkit.path / "pauses").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    folder = settings.volume / "trained/mine"
    with safe_open(folder / "mine.safetensors", "pt") as file:
        assert file.metadata()["training.step"] == "2"
    # One that was cut off while it was written is not what it goes on from.
    (folder / "ai-toolkit/adapter/adapter_000000004.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{cut")
    toolkit.behave()
    answer = await ask(worker, JOB | {"data": sent(images)})
    assert (answer["done"], answer["resumed_at"], answer["steps"]) == (True, 2, 5)
    again = await ask(worker, JOB | {"data": sent(images)})
    assert (again["resumed_at"], again["done"]) == (5, True)


async def test_a_wish_to_stop_ends_it_at_its_last_save_and_other_wishes_are_refused(toolkit, images):
    toolkit.behave(pause_at=3, pause_s=60)
    worker = toolkit.worker()
    task = asyncio.ensure_future(ask(worker, JOB | {"data": sent(images)}))
    await until_true(lambda: (toolkit.path / "pauses").exists())
    with pytest.raises(InvalidRequest, match="every save_every steps"):
        await ask(worker, {"action": "train_control", "name": "mine", "control": "save"})
    while (await ask(worker, {"action": "train_control", "name": "mine"}))["step"] < 3:
        await asyncio.sleep(0.01)
    await ask(worker, {"action": "train_control", "name": "mine", "control": "stop"})
    answer = await task
    assert (answer["done"], answer["steps"], answer["delivered_step"]) == (False, 2, 2)
    assert "goes on" in answer["next"]


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", OutOfMemory, "smaller batch_size"),
        ("No space left on device", DiskFull, "once there is room"),
        ("No module named 'lion_pytorch'", UnsupportedModel, "no Python package lion_pytorch"),
        ("something else at /home/secret/place", EngineFailure, "ended with status 1 after step 3 of 5"),
    ],
)
async def test_a_failure_says_what_is_left_and_how_to_go_on(toolkit, images, words, kind, said):
    toolkit.behave(fail_at=3, words=words)
    worker = toolkit.worker()
    with pytest.raises(kind, match=said) as caught:
        await ask(worker, JOB | {"data": sent(images)})
    assert "the adapter of step 2 stays, and the same request goes on from there" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_a_loss_that_is_no_number_ends_it(toolkit, images):
    toolkit.behave(nan_at=3)
    with pytest.raises(InvalidOutput, match=r"step 4 is no number: the adapter of step 2 stays.*learning_rate"):
        await ask(toolkit.worker(), JOB | {"data": sent(images)})


async def test_a_lora_that_does_not_land_is_refused_at_its_first_save(toolkit, images, settings):
    toolkit.behave(alien=True, pause_at=3, pause_s=60)
    with pytest.raises(IncompatibleAdapter, match="finds 0 of its"):
        await ask(toolkit.worker(), JOB | {"data": sent(images)})
    assert not (settings.volume / "trained/mine/mine.safetensors").exists()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"method": "dora"}, "method"),
        ({"targets": "attention"}, "targets"),
        ({"class_prompt": "a dog"}, "class_prompt"),
        ({"held_out": 0.2}, "held_out"),
        ({"text_encoder": True}, "text_encoder"),
        ({"warmup_steps": 3}, "warmup_steps"),
    ],
)
async def test_what_its_yaml_cannot_say_is_refused_by_name_before_it_starts(toolkit, images, asked, field):
    with pytest.raises(InvalidRequest, match=f"^{field}") as caught:
        await ask(toolkit.worker(), JOB | {"data": sent(images)} | asked)
    assert caught.value.field == field
    assert not (toolkit.path / "environment.json").exists()


async def test_a_worker_without_it_says_so(trains, images, tmp_path):
    with pytest.raises(InvalidRequest, match="let the operator set AI_TOOLKIT"):
        await ask(trains(), JOB | {"data": sent(images)})
    with pytest.raises(UnsupportedModel, match=r"names no folder with ai-toolkit's run\.py"):
        await ask(trains(ai_toolkit=tmp_path), JOB | {"data": sent(images)})
    assert "other people's code" in Settings(ai_toolkit=tmp_path, volume_dir=tmp_path).warnings()[-1]


async def test_a_class_that_ours_cannot_train_is_passed_on(toolkit, images, monkeypatch):
    from worker.training import rehearsal, trainer

    def refuse(pipe, *args):
        raise rehearsal._unknown(pipe)

    monkeypatch.setattr(trainer, "habits_of", refuse)
    job = FEW | {"data": sent(images), "name": "odd"}
    with pytest.raises(UnsupportedModel, match="cannot be trained here"):
        await ask(toolkit.worker(), job | {"trainer": "worker", "name": "ours"})
    worker = toolkit.worker()
    assert (await ask(worker, job))["done"]
    assert (await ask(worker, job))["resumed_at"] == 3


def base(root, **changes):
    return Base(
        **{"root": root, "arch": "sd1", "native_size": 64, "is_flow": False, "is_v": False, "on_cpu": True} | changes
    )


def test_its_yaml_says_every_text_and_number_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret")
    options = TrainingOptions(
        learning_rate=1e-5, ema=0.99, decay="constant", optimizer="lion", targets="all", flip=True
    )
    place = tmp_path / "${HF_TOKEN}: [x]"
    write_config(tmp_path / "config.yaml", options, base(place), place)
    text = (tmp_path / "config.yaml").read_text()
    assert "${" not in text, "it would put its environment there"
    said = json.loads(text)
    assert said == config(options, base(place), place)
    process = said["config"]["process"][0]
    assert process["model"]["name_or_path"] == process["datasets"][0]["folder_path"] == str(place)
    assert process["train"]["lr"] == 1e-5
    assert process["train"]["ema_config"] == {"use_ema": True, "ema_decay": 0.99}
    assert process["train"]["lr_scheduler_params"] == {"num_warmup_steps": 10}
    assert process["network"]["conv"] == 16
    assert yaml.safe_load(text)["job"] == "extension"


def test_its_bar_is_read_also_where_lines_are_left_out():
    reading = Reading("adapter", 6, 2)
    bar = "adapter:  33%|███▎      | {}/6 [00:05<00:50,  1.90it/s, lr: 1.0e-04 loss: {}e-01]"
    other = "Loading checkpoint shards: 100%|██████████| 3/6 [00:00<00:00, 7.1it/s]"
    lines = [other, bar.format(2, 2.0), bar.format(3, 2.0), bar.format(3, 3.0), bar.format(5, 5.0), bar.format(6, 5.0)]
    assert [reading.hear(line) for line in lines] == [False, True, True, True, True, True]
    assert reading.losses == [0.2, 0.3, 0.3, 0.5]
    assert (reading.done, reading.rate) == (6, 1e-4)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_of_it_outlives_the_worker(tmp_path):
    script = "import os, time; os.fork(); print(os.getpid(), flush=True); time.sleep(600)"
    running, pids = Running([sys.executable, "-c", script], tmp_path, {"PATH": os.defpath}), []
    while len(pids) < 2:
        pids += map(int, running.lines(1.0))
    assert all(map(is_alive, pids))
    running._wish.close()  # as when the worker dies
    running.end()
    until(lambda: not any(map(is_alive, pids)))  # the kernel ends them in its own time
