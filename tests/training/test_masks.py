"""Masks: found by name or transparency, in the form of each family's latents, and nothing outside is learnt from."""

import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch

from tests.training.conftest import CLASSES
from tests.training.test_dataset import save
from tests.training.test_rehearsal import HABITS, IMAGE, MORE, pipeline
from worker.training.dataset import mirrored, read_dataset
from worker.training.lessons import grouped, joined
from worker.training.mask_weights import MaskWeights
from worker.training.masks import MASKS
from worker.training.objective import Objective
from worker.training.rehearsal import DenoiserCall, rehearse


def left_half(path, size=(40, 30)):
    """White on the left, black on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, : size[0] // 2] = 255
    PIL.Image.fromarray(pixels).save(path)


def grey(mask):
    raster = mask.read()
    return np.frombuffer(raster.data, np.uint8).reshape(raster.height, raster.width)


def test_a_mask_is_found_by_its_images_name_beside_it_or_in_a_folder():
    names = [
        "a.jpg",
        "a.mask.png",
        "sub/b.png",
        "masks/sub/b.webp",
        "c.png",
        "masks/c.png",
        "sub/d.png",
        "sub/masks/d.png",
    ]
    own = ["hats/1.png", "masks/1.png", "lost.mask.png"]  # one of these is an image of a carnival's mask
    assert MASKS.among([*names, *own]) == {
        "a.jpg": "a.mask.png",
        "sub/b.png": "masks/sub/b.webp",
        "c.png": "masks/c.png",
        "sub/d.png": "sub/masks/d.png",
    }


def test_masks_are_told_of_before_anything_is_learnt_and_are_no_images(tmp_path):
    for index, name in enumerate(("good", "shape", "black", "broken", "none")):
        save(tmp_path / f"{name}.png", index)
    left_half(tmp_path / "good.mask.png", (80, 60))
    left_half(tmp_path / "shape.mask.png", (40, 40))
    PIL.Image.new("L", (40, 30)).save(tmp_path / "black.mask.png")
    (tmp_path / "broken.mask.png").write_bytes(b"no image")
    left_half(tmp_path / "lost.mask.png")
    dataset = read_dataset(tmp_path, caption="a thing")
    assert [each.name for each in dataset.examples if each.mask] == ["good.png"]
    assert len(dataset.examples) == 5
    lost, black, broken, shape, some = dataset.faults
    assert "lost.mask.png is a mask, and its image is not there" in lost
    assert "black.mask.png is no mask of black.png, which is learnt whole: it covers nothing" in black
    assert "broken.mask.png is no mask of broken.png" in broken
    assert "it is 40x40, and its image 40x30" in shape
    assert "4 images have no mask and are learnt whole; 1 have one" in some
    off = read_dataset(tmp_path, caption="a thing", mask="off")
    assert len(off.examples) == 5
    assert not any(each.mask for each in off.examples)
    assert off.digest != dataset.digest


def test_a_zip_file_has_the_masks_of_its_folder(tmp_path):
    save(tmp_path / "in/a.png")
    left_half(tmp_path / "in/masks/a.png")
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "in")
    assert zipfile.is_zipfile(tmp_path / "data.zip")
    folder, zipped = read_dataset(tmp_path / "in"), read_dataset(tmp_path / "data.zip")
    assert folder.digest == zipped.digest
    (example,) = zipped.examples
    assert np.array_equal(grey(example.mask)[:, ::-1], grey(mirrored(example).mask))
    assert mirrored(example).mask.digest != example.mask.digest


def test_transparency_is_a_mask_where_that_is_asked_for(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "solid.png", 1)
    with PIL.Image.open(tmp_path / "a.png") as file:
        image = file.convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, 40).astype("uint8"), (30, 1))
    image.putalpha(PIL.Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    assert not any(each.mask for each in read_dataset(tmp_path).examples)
    clear, solid = read_dataset(tmp_path, mask="alpha").examples
    assert np.array_equal(grey(clear.mask), alpha)
    assert solid.mask is None


@pytest.fixture
def masked(images, tmp_path):
    """The images, of which all have a mask of their left half."""
    folder = tmp_path / "masked"
    shutil.copytree(images, folder)
    for file in images.glob("*.png"):
        with PIL.Image.open(file) as image:
            left_half(folder / f"{file.stem}.mask.png", image.size)
    return folder


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", CLASSES)
def test_nothing_outside_a_mask_moves_a_gradient(trainer, masked, family):
    for suffix in (".png", ".mask.png"):
        (masked / f"3{suffix}").unlink()  # the others are square
    made = trainer(family, batch_size=3, mask_floor=0.0, data=masked)
    predicted = []

    def listen(module, args, output):
        value = output[0] if isinstance(output, tuple) else output.sample
        value.retain_grad()
        predicted.append(value)

    made.denoiser.register_forward_hook(listen)
    made.step()
    for value in predicted:
        gradient = value.grad
        if value.ndim == 3:  # FLUX's: rows of patches
            gradient = gradient.reshape(len(value), 4, -1, value.shape[2]).permute(0, 3, 1, 2)
        middle = gradient.shape[-1] // 2
        assert (gradient[..., middle:] == 0).all()
        assert (gradient[..., :middle] != 0).float().mean() > 0.9


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", [*HABITS, *MORE])
def test_a_mask_is_packed_as_the_latents_of_its_image_are(name):
    pipe, habits = pipeline(name), (HABITS | MORE)[name]
    halves = [np.zeros((64, 64), np.uint8) for _ in range(2)]
    halves[0][:, :32], halves[1][:, 32:] = 255, 255
    reader = MaskWeights(pipe, habits)
    left, right = (reader.weights(PIL.Image.fromarray(each)) for each in halves)
    assert torch.allclose(left + right, torch.ones_like(left), atol=1e-3)
    assert torch.allclose(left, left.round(), atol=1e-3)
    other = np.asarray(IMAGE).copy()
    other[:, :32] = 255 - other[:, :32]
    clean = [rehearse(pipe, habits, each, "", 0).clean for each in (IMAGE, PIL.Image.fromarray(other))]
    assert left.shape == clean[0].shape
    moved = (clean[1] - clean[0]).abs()
    assert moved[left > 0.5].mean() > moved[left < 0.5].mean(), "it is over what the left half became"
    assert "encode" not in vars(pipe.vae)


def test_the_floor_is_the_weight_outside_and_images_without_a_mask_count_whole(trainer, masked):
    (masked / "1.mask.png").unlink()
    made = trainer(batch_size=2, mask_floor=0.25, data=masked)
    calls = {lesson.example.name: made._call(lesson, False) for lesson in made._lessons}
    weight = calls["0.png"].weight
    assert weight.shape == calls["0.png"].clean.shape
    assert torch.equal(weight[..., :4], torch.ones_like(weight[..., :4]))
    assert torch.equal(weight[..., 4:], torch.full_like(weight[..., 4:], 0.25))
    assert calls["1.png"].weight is None
    (both,) = grouped([calls["1.png"], calls["0.png"]])
    assert torch.equal(joined(both).weight, torch.cat([torch.ones_like(weight), weight]))


def test_a_masked_loss_is_the_mean_under_the_mask():
    flow, clean, noise, times = Objective("flow"), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.tensor([500.0])
    predicted = torch.tensor([[[1.0, 3.0], [2.0, 100.0]]])
    weight = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]])
    assert flow.loss(predicted, clean, noise, times, weight).item() == pytest.approx((1 + 9 + 0.5 * 4) / 2.5)
    assert flow.loss(predicted, clean, noise, times, torch.ones_like(weight)) == flow.loss(
        predicted, clean, noise, times
    )


def test_a_call_without_masks_is_joined_without_weights():
    call = DenoiserCall({"sample": torch.zeros(1, 2), "timestep": torch.tensor(1)}, "sample", "timestep")
    (both,) = grouped([call, call])
    assert joined(both).weight is None
