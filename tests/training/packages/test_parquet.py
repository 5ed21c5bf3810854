"""Datasets of the Hub in Parquet: rows as images, captions and masks; what a stranger's file may not do."""

import io

import pytest
from PIL import Image

from tests.fakes.hub import FakeHub
from worker.core.errors import InvalidRequest
from worker.store import hub_datasets, parquet_images
from worker.store.hub_datasets import HubDatasets
from worker.training.dataset import read_dataset

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NAMES = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")


@pytest.fixture
def pyarrow():
    pytest.importorskip("pyarrow.parquet")
    import pyarrow

    return pyarrow


def image(seed, kind="PNG"):
    Image.effect_noise((64, 64), 10 + seed).convert("RGB").save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


@pytest.fixture
def fetched(pyarrow, tmp_path):
    """A function that keeps tables as the files of a dataset, fetches it, and returns the folder."""

    def fetch(*tables, files=NAMES, raw=None):
        source, target = tmp_path / "source", tmp_path / "data"
        (source / "data").mkdir(parents=True)
        target.mkdir()
        for name, table in zip(files, tables, strict=False):
            pyarrow.parquet.write_table(pyarrow.table(table), source / name)
        for name, content in (raw or {}).items():
            (source / name).write_bytes(content)
        with FakeHub() as hub:
            hub.add_repo("org/rows", source)
            HubDatasets(hub.endpoint).fetch("org/rows", target)
        return target

    return fetch


def test_rows_become_images_with_captions_and_masks(fetched):
    images = [image(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "PNG"))]
    mask = image(9)
    hub_images = [{"bytes": each, "path": f"{n}.png"} for n, each in enumerate(images[:2])]
    first = {"image": hub_images, "text": ["a cat", None], "mask": [{"bytes": mask, "path": None}, None], "n": [1, 2]}
    second = {"image": [{"bytes": images[2], "path": ""}, None], "text": ["a dog", "nobody"]}
    folder = fetched(first, second, {"image": [{"bytes": image(7), "path": ""}], "text": ["of the test split"]})
    assert sorted(each.name for each in folder.iterdir()) == [
        *("000000.mask.png", "000000.png", "000000.txt", "000001.jpg", "000002.png", "000002.txt"),
    ]
    dataset = read_dataset(folder, caption="none")
    assert [each.read() for each in dataset.examples] == images
    assert [each.caption for each in dataset.examples] == ["a cat", "none", "a dog"]
    assert dataset.examples[0].mask


def test_plain_binaries_and_other_names_are_read(fetched):
    folder = fetched({"caption": ["a cat"], "jpg": [image(0, "JPEG")]}, files=["data/rows.parquet"])
    assert (folder / "000000.txt").read_text() == "a cat"


def test_pairs_are_read_with_their_instructions(fetched):
    source, target = image(0), image(1)
    words = {"instruction": ["be blue"], "text": ["a cat"]}
    folder = fetched({"input_image": [source], "edited_image": [target], **words}, files=["data/rows.parquet"])
    (example,) = read_dataset(folder).examples
    assert (example.read(), example.source.read(), example.caption) == (target, source, "be blue")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"image": ["https://example.com/1.png"], "text": ["a"]},
            "no column of images named image, img.*but image, text",
        ),
        ({"photo_id": [1]}, "but photo_id"),
        ({"image": [{"bytes": None, "path": "1.png"}]}, "no row with an image in it: they are links, or empty"),
        ({"image": [b"x" * 2_000]}, "an image of over"),
        ({"image": [b"x" * 900] * 20}, "is too large in all"),
        ({"image": [b"x"] * 5}, "more than 4 images"),
        ({"image": [b"abcdefgh" * 100] * 4}, "rows of over"),
    ],
)
def test_what_a_strangers_file_may_not_hold_is_refused_by_name(fetched, monkeypatch, pyarrow, table, words):
    if "image" in table and table["image"] == [{"bytes": None, "path": "1.png"}]:
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table = {"image": pyarrow.array(table["image"], kind)}
    monkeypatch.setattr(parquet_images, "MAX_CELL_BYTES", 1_000)
    monkeypatch.setattr(parquet_images, "MAX_ROWS", 4)
    if "too large" in words:
        monkeypatch.setattr(hub_datasets, "MAX_BYTES", 9_000)  # the file, which has the bytes once, is less
        monkeypatch.setattr(parquet_images, "MAX_ROWS", 40)
    if "rows of" in words:
        monkeypatch.setattr(parquet_images, "_MAX_ROW_GROUP_BYTES", 100)
    with pytest.raises(InvalidRequest, match=f"data: org/rows .*{words}") as failure:
        fetched(table)
    assert failure.value.field == "data"


def test_a_file_that_is_no_parquet_is_refused_and_one_that_is_too_large_is_not_kept(fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_datasets, "MAX_BYTES", 100)
    with pytest.raises(InvalidRequest, match="org/rows has a Parquet file that cannot be read"):
        fetched(raw={NAMES[0]: b"PAR1 nothing PAR1"})
    assert not list((tmp_path / "data").iterdir())


def test_the_bytes_of_all_files_are_bounded(fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_datasets, "MAX_BYTES", 100)
    with pytest.raises(InvalidRequest, match="in all"):
        fetched(raw={NAMES[0]: b"x" * 101})
    assert not list((tmp_path / "data").iterdir())
