"""What is made of a control's image: of its size, repeatable, and what its name says."""

from typing import get_args

import numpy as np
import pytest

from tests.images import gradient
from worker.core.adapter import Preprocess
from worker.core.image import Raster
from worker.media.preprocessing import PREPROCESSES, preprocess


def square(size=64):
    """A dark square on light ground, with a thin line beside it."""
    image = np.full((size, size, 3), 230, np.uint8)
    image[16:40, 16:40] = (200, 30, 30)
    image[50:51, 8:56] = 20
    return image


def made(how, image):
    height, width = image.shape[:2]
    result = preprocess(Raster("RGB", width, height, image.tobytes()), how)
    assert (result.mode, result.width, result.height) == ("RGB", width, height)
    return np.frombuffer(result.data, np.uint8).reshape(height, width, 3).astype(int)


def test_every_name_of_a_request_has_its_operator():
    assert set(get_args(Preprocess)) == set(PREPROCESSES)


@pytest.mark.parametrize("how", PREPROCESSES)
def test_any_size_comes_back_as_it_was_and_the_same_each_time(how):
    for shape in ((48, 80), (7, 5), (1, 64)):
        image = np.ascontiguousarray(gradient(*shape[::-1]))
        assert np.array_equal(made(how, image), made(how, image))


def test_canny_marks_the_outline_and_nothing_else():
    edges = made("canny", square())[..., 0]
    assert set(np.unique(edges)) == {0, 255}
    assert edges[20:36, 14:18].max(axis=1).min() == 255  # the left side of the square, all along
    assert edges[22:34, 22:34].max() == 0
    assert edges[0:10].max() == 0


def test_lineart_is_white_on_the_line_and_black_on_the_ground():
    lines = made("lineart", square())[..., 0]
    assert lines[50, 20:44].min() > 200
    assert lines[2:6, 2:6].max() < 20


def test_grey_inverted_and_divided_images():
    image = square()
    grey = made("grayscale", image)
    assert np.ptp(grey, axis=-1).max() == 0
    assert np.array_equal(made("invert", image), 255 - image.astype(int))
    assert set(np.unique(made("threshold", image))) == {0, 255}


@pytest.mark.parametrize("how", ["blur", "tile"])
def test_blurred_and_tiled_images_keep_colours_and_lose_detail(how):
    image = square()
    result = made(how, image)
    assert np.abs(result.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < 4
    assert np.abs(np.diff(result, axis=0)).max() < np.abs(np.diff(image.astype(int), axis=0)).max() - 20
