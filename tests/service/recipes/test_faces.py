"""Faces that are found and drawn again, by scikit-image and by a YuNet, which `make test-faces` installs."""

import warnings

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from tests.answers import files_of
from tests.asking import perform
from tests.service.recipes.by_hand import decoded, encoded, redrawn
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.errors import LoadFailed
from worker.core.image import Raster
from worker.media.detecting import Detector

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEP = {
    "model": "demo",
    "prompt": "a cat face",
    "image": "${inputs.image}",
    "detail": {"find": "faces", "padding": 0.2},
    "width": 64,
    "height": 64,
    "strength": 0.8,
    "num_inference_steps": 4,
    "upscale": False,
}


def face(side=256, size=90, at=(120, 110)):
    """Draw a face of so many pixels, its middle at a place of the image."""
    image = Image.new("RGB", (side, side), (200, 200, 205))
    draw, (x, y) = ImageDraw.Draw(image), at

    def oval(left, top, right, bottom, colour):
        draw.ellipse((x + left * size, y + top * size, x + right * size, y + bottom * size), fill=colour)

    oval(-0.46, -0.62, 0.46, 0.3, (60, 40, 30))
    oval(-0.4, -0.38, 0.4, 0.55, (225, 180, 150))
    for side_of in (-0.18, 0.18):
        oval(side_of - 0.09, -0.12, side_of + 0.09, 0.0, (40, 30, 30))
        draw.rectangle(
            (x + (side_of - 0.12) * size, y - 0.22 * size, x + (side_of + 0.12) * size, y - 0.17 * size),
            fill=(60, 40, 30),
        )
    draw.polygon([(x, y), (x - 0.07 * size, y + 0.18 * size), (x + 0.07 * size, y + 0.18 * size)], (190, 140, 115))
    oval(-0.17, 0.26, 0.17, 0.36, (150, 60, 60))
    return image


def raster(image):
    return Raster("RGB", image.width, image.height, image.tobytes())


@pytest.fixture(scope="module")
def skimage():
    return pytest.importorskip("skimage")


@pytest.mark.parametrize(("side", "size", "at"), [(256, 90, (120, 110)), (1024, 360, (600, 500))])
def test_a_drawn_face_is_found_where_it_is(skimage, side, size, at):
    first = Detector("faces").boxes(raster(face(side, size, at)), 4)[0]
    assert first.left < at[0] < first.right
    assert first.top < at[1] < first.bottom
    assert 0.6 * size < first.width < 1.4 * size
    assert Detector("faces").boxes(Raster("RGB", side, side, b"\x80" * (side * side * 3)), 4) == []


def test_the_file_of_a_cascade_finds_what_it_was_made_for_and_another_file_is_refused(skimage, tmp_path):
    from skimage.data import lbp_frontal_face_cascade_filename

    image = raster(face())
    named = f"file:{lbp_frontal_face_cascade_filename()}"
    assert Detector(named).boxes(image, 1) == Detector("faces").boxes(image, 1)
    (tmp_path / "other.xml").write_text("<opencv_storage/>")
    with pytest.raises(LoadFailed, match=r"other\.xml is no cascade of local binary patterns"):
        Detector(f"file:{tmp_path}/other.xml")


async def test_a_found_face_is_drawn_again_as_by_hand(skimage, tmp_path):
    (tmp_path / "faces.yaml").write_text(
        yaml.safe_dump({"inputs": {"image": {"type": "image"}}, "steps": {"faces": STEP}}, sort_keys=False)
    )
    worker = build_worker(Settings(volume_dir=tmp_path / "volume", device="cpu", recipes=tmp_path))
    image = encoded(face())
    answer = await perform(worker, {"model": "faces", "image": image, "seed": 3}, "faces")
    (step,) = answer["steps"]
    found = step["parameters"]["regions"]
    assert 0.2 < found[0][0] < 120 / 256 < found[0][2] < 0.8
    by_hand = STEP | {"image": image, "seed": 3, "detail": {"regions": found, "padding": 0.2}}
    same = await redrawn(worker, by_hand, "by-hand")
    assert decoded(files_of(answer)[0]).tobytes() == decoded(same["image"]).tobytes()
    assert decoded(files_of(answer)[0]).tobytes() != face().tobytes()


def test_a_net_of_yunets_form_finds_what_it_was_made_for(tmp_path):
    """A net that calls red areas faces: OpenCV reads it and its boxes as it does a YuNet's."""
    pytest.importorskip("onnx")
    path = tmp_path / "red.onnx"
    _write_red_net(path)
    pixels = np.full((192, 256, 3), 200, np.uint8)
    pixels[96:128, 64:96] = (255, 0, 0)
    boxes = Detector(f"file:{path}").boxes(Raster("RGB", 256, 192, pixels.tobytes()), 4)
    assert [(box.left, box.top, box.right, box.bottom) for box in boxes] == [(37, 69, 123, 155)]
    assert Detector(f"file:{path}").boxes(Raster("RGB", 256, 192, bytes(256 * 192 * 3)), 4) == []


def _write_red_net(path):
    import torch

    class Red(torch.nn.Module):
        def forward(self, pixels):  # blue comes first
            red = (pixels[:, 2:] - pixels[:, :1]).clamp(min=0) / 255
            of_strides = [torch.nn.functional.avg_pool2d(red, stride) for stride in (8, 16, 32)]
            scores = [
                (each * float(index == 2)).flatten(2).transpose(1, 2)  # of the largest cells only
                for index, each in enumerate(of_strides)
            ]
            # A box's middle in its cell, and the logarithm of its sides in cells.
            boxes = [torch.cat([each * 0 + 0.5, each * 0 + 0.5, each * 0 + 1, each * 0 + 1], 2) for each in scores]
            return (*scores, *scores, *boxes, *(torch.cat([each * 0] * 10, 2) for each in scores))

    names = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Red(), (torch.zeros(1, 3, 320, 320),), str(path), input_names=["input"], output_names=names, dynamo=False
        )
