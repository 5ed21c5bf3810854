"""A model's own options of a training: they hold where a caller says no others, at every door."""

import pytest
from PIL import Image

from tests.app.commands import invoke, said
from tests.conftest import PROJECT
from tests.training.test_jobs import ask, sent
from tests.training.test_typed_line import STYLE, volume  # noqa: F401
from worker.core.own_training import OwnTraining
from worker.core.training import TrainingOptions
from worker.training.dataset import read_dataset
from worker.training.drawing import Drawing

OWN = OwnTraining(learning_rate=0.003, batch_size=8, targets="all")


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, {"learning_rate": 0.003, "batch_size": 8, "targets": "all"}),
        ({"batch_size": 1, "learning_rate": 1e-4}, {"targets": "all"}),
        ({"optimizer": "prodigy"}, {"batch_size": 8, "targets": "all"}),
        ({"optimizer": "lion"}, {"batch_size": 8, "targets": "all"}),
        ({"method": "full"}, {"batch_size": 8, "targets": "all"}),
    ],
)
def test_what_a_caller_says_comes_before_what_the_model_wants(options, own):
    sent = TrainingOptions(**options)
    assert sent.unsaid(OWN) == own
    assert sent.of_model(OWN) == sent.model_copy(update=own)
    assert sent.of_model(None) == sent


async def test_a_plan_tells_the_models_own_options_and_counts_with_them(trains, images):
    worker = trains(models_yaml=PROJECT / "models.yaml", default_model="demo")
    job = {"action": "train_plan", "data": sent(images), "steps": 300}
    plan = await ask(worker, job)
    assert plan["defaults"] == {"learning_rate": 0.003, "batch_size": 8, "targets": "all", "sample_captions": 2}
    assert plan["times_each_image_is_seen"] == 300 * 8 / 4
    said = await ask(worker, job | {"batch_size": 1, "targets": "linear"})
    assert said["defaults"] == {"learning_rate": 0.003, "sample_captions": 2}
    assert said["times_each_image_is_seen"] == 300 / 4
    assert said["memory"]["learnt_gb"] < plan["memory"]["learnt_gb"]
    assert said["name"] != plan["name"]


def test_the_terminal_counts_with_them_too():
    line = ("train", "--data", STYLE, "--steps", "300", "--check")
    assert "times each image is seen: 100.0" in said(invoke(*line))
    assert "times each image is seen: 12.5" in said(invoke(*line, "--batch-size", "1"))


def test_captions_are_drawn_where_no_sample_is_said(tmp_path):
    for index, caption in enumerate(("a cat", "a cat", "", "a <lora:theirs:1> dog", "x" * 3_000)):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(caption)
    dataset = read_dataset(tmp_path)

    def drawn(**options):
        return Drawing(tmp_path, TrainingOptions(**options), dataset, draw=_never).prompts

    assert drawn() == ()
    assert drawn(sample_captions=1) == ("a cat",)
    assert drawn(sample_captions=8) == ("a cat", "x" * 2_000)
    assert drawn(sample_captions=8, samples=("a fox",)) == ("a fox",)


async def _never(*_):
    raise AssertionError("nothing is drawn here")
