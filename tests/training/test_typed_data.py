"""DATA as it is typed: what a job takes, with its guards, in a terminal's words."""

import json
import shutil
import zipfile

import pytest

from tests.app.commands import failed, invoke, said
from tests.fakes.hub import FakeHub
from tests.training.test_jobs import Files
from worker.app.cli.training_data import name_of, typed_data
from worker.core.training import TrainingData


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("ALLOW_PRIVATE_URLS", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(data):
    return json.loads(said(invoke("train", data, "--check", "--json")))


def test_everything_that_a_job_takes_is_learnt_from(place, images, monkeypatch):
    with zipfile.ZipFile(place / "four.zip", "w") as archive:
        for file in images.iterdir():
            archive.write(file, file.name)
    (place / "volume/datasets").mkdir(parents=True)
    shutil.copy(place / "four.zip", place / "volume/datasets/four.zip")
    with FakeHub() as hub, Files(images) as links, Files(place) as archives:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.add_repo("org/hub-four", images)
        lines = [f"{links.origin}/{n}.png thing {n}" for n in range(3)]
        lines += ["", "# the last", json.dumps({"image": f"{links.origin}/3.png", "caption": "thing 3", "repeats": 2})]
        (place / "list.txt").write_text("\n".join(lines))
        facts = checked(images)
        for data in ("hf:org/hub-four", f"{archives.origin}/four.zip", "volume:four.zip"):
            assert checked(data) == facts
        assert checked("list.txt") == facts | {"images_with_repeats": 5, "times_each_image_is_seen": 1_600.0}
        assert (place / "trained/hub-four/data").is_dir(), "it is kept for the training"
        asked = len(hub.requests)
        assert checked("hf:org/hub-four") == facts
        assert len(hub.requests) == asked, "and not fetched again"
        line = failed(invoke("train", "hf:org/other", "-o", "trained/hub-four", "--check"))
        assert line.startswith("error: --output holds another training")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("hf:../x", "DATA is no dataset of the Hub"),
        ("volume:nothing", "DATA: there is no volume:nothing"),
        ("http://127.0.0.1:9/x.zip", "DATA cannot be read as a ZIP file"),
        ("list.txt", "DATA: line 2 of list.txt must be an https URL, with a caption after a space"),
        ("rows.jsonl", "DATA must be an image or"),
        ("empty.txt", "DATA holds 0 images"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(place, monkeypatch, data, words):
    monkeypatch.delenv("ALLOW_PRIVATE_URLS")
    (place / "list.txt").write_text("https://example.com/1.png\nno url")
    (place / "rows.jsonl").write_text('{"img": 1}')
    (place / "empty.txt").write_text("# nothing")
    assert words in failed(invoke("train", data, "--check"))


def test_a_training_is_called_as_its_data(tmp_path):
    assert [name_of(text) for text in ("hf:org/my set@main", "https://x.org/a%20b.zip?c=1", "volume:in/cats.zip")] == [
        "my-set",
        "a-b",
        "cats",
    ]
    assert name_of(str(tmp_path / "blue")) == "blue"
    assert typed_data("hf:org/x") == TrainingData(dataset="org/x")
    assert typed_data(str(tmp_path)) == tmp_path
