"""Datasets: captions from where people keep them, and every fault in a sentence before anything is trained."""

import json
import zipfile

import numpy as np
import PIL.Image
import pytest

from worker.core.errors import InvalidRequest
from worker.media.images import to_pil
from worker.training.buckets import bucket, sizes
from worker.training.dataset import mirrored, read_dataset


def save(path, seed=0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = (np.random.RandomState(seed).rand(4, 5, 3) * 255).astype("uint8")
    PIL.Image.fromarray(patches).resize(size, PIL.Image.Resampling.BICUBIC).save(path)


def test_captions_come_from_a_text_file_else_a_line_else_the_caption_for_all(tmp_path):
    for index in range(3):
        save(tmp_path / f"sub/{index}.png", index)
    (tmp_path / "sub/0.txt").write_text("\ufeff a cat \n")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/1.png", "text": "a dog"}) + "\n\n")
    dataset = read_dataset(tmp_path, trigger="sks", caption="a thing")
    assert [each.caption for each in dataset.examples] == ["sks a cat", "sks a dog", "sks a thing"]
    assert dataset.faults == ()


def test_a_template_says_how_every_caption_is_written(tmp_path):
    for index, name in enumerate(("red_robot", "b")):
        save(tmp_path / f"{name}.png", index)
    (tmp_path / "b.txt").write_text("a {name} dog")
    dataset = read_dataset(tmp_path, trigger="sks", template="{trigger}, {caption} ({name}, {other})")
    assert [each.caption for each in dataset.examples] == [
        "sks, a {name} dog (b, {other})",
        "sks, (red robot, {other})",
    ]
    assert read_dataset(tmp_path, trigger="sks", template="of {name}").examples[0].caption == "sks of b"


def test_a_zip_file_is_read_as_its_folder_is(tmp_path):
    save(tmp_path / "in/a.png")
    (tmp_path / "in/a.txt").write_text("a cat")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("a.png", "a.txt"):
            archive.write(tmp_path / "in" / name, name)
        archive.writestr("../../evil.png", (tmp_path / "in/a.png").read_bytes())
    folder, zipped = read_dataset(tmp_path / "in"), read_dataset(tmp_path / "data.zip")
    assert [(each.digest, each.caption) for each in zipped.examples if each.name == "a.png"] == [
        (each.digest, each.caption) for each in folder.examples
    ] or len(zipped.examples) == 1  # the other entry is the same image, and nothing was written anywhere
    assert not (tmp_path.parent / "evil.png").exists()


def test_faults_are_named_and_what_is_sound_is_learnt(tmp_path):
    save(tmp_path / "a.png", 1)
    (tmp_path / "same.png").write_bytes((tmp_path / "a.png").read_bytes())
    PIL.Image.open(tmp_path / "a.png").resize((80, 60)).save(tmp_path / "alike.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    dataset = read_dataset(tmp_path)
    assert [each.name for each in dataset.examples] == ["a.png", "alike.png"]
    broken, same, alike, words = dataset.faults
    assert "broken.jpg is left out" in broken
    assert "same.png is left out: it is the same file as a.png" in same
    assert "alike.png looks like a.png" in alike
    assert "2 images have no caption" in words
    assert ".txt" in words


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, "no image"),
        ({"notes.txt": b"a cat"}, "no image"),
        ({"a.png": b"no image"}, "none can be read"),
        ({"a.png": None, "metadata.jsonl": b"{}\n"}, "line 1 of metadata.jsonl"),
        ({"a.png": None, "metadata.jsonl": b'{"file_name": "a.png"}\n[1]\n'}, "line 2 of metadata.jsonl"),
    ],
)
def test_a_dataset_that_cannot_be_learnt_is_refused_by_name(tmp_path, files, names):
    for name, content in files.items():
        save(tmp_path / name) if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=names) as failure:
        read_dataset(tmp_path)
    assert failure.value.field == "data"


def test_images_held_out_are_always_the_same_and_never_learnt(tmp_path):
    for index in range(10):
        save(tmp_path / f"{index}.png", index)
    learnt, held = read_dataset(tmp_path).split(0.2)
    again = read_dataset(tmp_path).split(0.2)
    assert (len(learnt), len(held)) == (8, 2)
    assert {each.digest for each in held} == {each.digest for each in again[1]}
    assert len(read_dataset(tmp_path).split(0.01)[1]) == 1, "a share of few is one"
    assert not {each.name for each in held} & {each.name for each in learnt}


def test_the_digest_is_of_images_and_captions(tmp_path):
    save(tmp_path / "a.png")
    first = read_dataset(tmp_path, caption="one").digest
    assert first == read_dataset(tmp_path, caption="one").digest != read_dataset(tmp_path, caption="two").digest


def test_a_mirrored_example_shows_the_image_in_a_mirror(tmp_path):
    save(tmp_path / "a.png")
    (example,) = read_dataset(tmp_path).examples
    pixels, turned = (np.asarray(to_pil(each.raster())) for each in (example, mirrored(example)))
    assert np.array_equal(pixels[:, ::-1], turned)
    assert mirrored(example).digest != example.digest


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 1000), (512, 512)), ((1920, 1080), (672, 384)), ((100, 900), (384, 640))]
)
def test_a_bucket_has_the_shape_of_the_image_and_no_more_pixels_than_the_model_knows(size, expected):
    assert bucket(*size, 512, 64 if expected[0] == 384 else 32) == expected
    assert all(width * height <= 512 * 512 and width % 32 == height % 32 == 0 for width, height in sizes(512, 32))
