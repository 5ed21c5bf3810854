"""Repeats: images count as often as their folder or their line has it, and each is encoded once."""

import base64
import json
from pathlib import Path

import pytest

from tests.training.test_dataset import save
from worker.core.errors import InvalidRequest, ParameterOutOfRange
from worker.core.training import TrainingOptions
from worker.service.training.material import _list
from worker.training.dataset import read_dataset
from worker.wire.training import decode_training


@pytest.fixture
def counted(tmp_path) -> Path:
    """Four images: two of a folder that counts, one of them by its line; and two that count once."""
    for index, name in enumerate(("3_cat/a", "3_cat/b", "2024_summer/a", "plain/b")):
        save(tmp_path / f"{name}.png", index, size=(64, 64))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "3_cat/b.png", "text": "x", "repeats": 2}))
    return tmp_path


def test_a_folder_counts_as_its_name_says_and_an_image_as_its_line(counted):
    dataset = read_dataset(counted, caption="a thing")
    assert {each.name: each.repeats for each in dataset.examples} == {
        "2024_summer/a.png": 1,
        "3_cat/a.png": 3,
        "3_cat/b.png": 2,
        "plain/b.png": 1,
    }
    assert dataset.lessons == 7
    assert dataset.rounds(TrainingOptions(steps=70, batch_size=2, flip=True)) == 10
    once = read_dataset(counted, caption="a thing").digest
    (counted / "metadata.jsonl").unlink()
    (counted / "3_cat/b.txt").write_text("x")
    assert read_dataset(counted, caption="a thing").digest != once, "how often it counts tells trainings apart"


@pytest.mark.parametrize("repeats", [0, 1_001, "3", 1.5, True])
def test_a_line_that_says_no_number_is_refused(counted, repeats):
    (counted / "metadata.jsonl").write_text(json.dumps({"file_name": "plain/b.png", "repeats": repeats}))
    with pytest.raises(InvalidRequest, match=r"repeats of plain/b.png must be a whole number between 1 and 1,000"):
        read_dataset(counted)


def test_a_round_has_each_as_often_as_it_counts_and_encodes_it_once(trainer, counted, tmp_path):
    made = trainer(data=counted, flip=True)
    assert len(list((tmp_path / "lessons").glob("*"))) == 4 * 2 + 2, "each and its mirror image, and one has words"
    seen = []
    for made.steps_done in range(14):
        seen += [lesson.example.name for lesson in made._next(made._lessons)]
    assert {name: seen.count(name) for name in seen if "mirrored" not in name} == {
        "2024_summer/a.png": 1,
        "3_cat/a.png": 3,
        "3_cat/b.png": 2,
        "plain/b.png": 1,
    }
    assert len(seen) == 14


def test_what_a_request_says_of_an_image_reaches_its_folder(tmp_path):
    save(tmp_path / "in.png")
    image = base64.b64encode((tmp_path / "in.png").read_bytes()).decode()
    data = [{"image": image, "repeats": 5}, image]
    sent = decode_training("train", {"data": data}).data
    assert "repeats" not in sent.model_dump()["images"][1], "it is as it was before there were repeats"
    (tmp_path / "data").mkdir()
    save(tmp_path / "data/00000.png")
    save(tmp_path / "data/00001.png", 1)
    _list(tmp_path / "data", [*zip(("00000.png", "00001.png"), sent.images, strict=True)])
    assert [each.repeats for each in read_dataset(tmp_path / "data").examples] == [5, 1]
    with pytest.raises(ParameterOutOfRange, match="its repeats a whole number between 1 and 1,000"):
        decode_training("train", {"data": [{"image": image, "repeats": 0}]})
