"""Cuts: the middle of an image, places at random that stay the same, or all of it; and its mask is cut alike."""

import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from worker.core.training import TrainingOptions
from worker.training.cuts import cuts_of, steadily
from worker.training.dataset import read_dataset
from worker.training.lessons import read_weights

GRID = 64, 16


def cuts(width, height, **options):
    return cuts_of(width, height, "digest", TrainingOptions(**options), GRID)


def test_the_middle_is_cut_where_nothing_is_said():
    (cut,) = cuts(300, 100)
    assert (cut.size, cut.scaled, cut.corner) == ((80, 48), (144, 48), (32, 0))


def test_places_at_random_are_several_inside_the_image_and_the_same_again():
    found = cuts(300, 100, crop="random", crops=8)
    assert found == cuts(300, 100, crop="random", crops=8) != cuts(300, 100, crop="random", crops=8, seed=1)
    assert len({cut.corner for cut in found}) > 4
    for cut in found:
        assert cut.size == (80, 48)
        assert 0 <= cut.corner[0] <= cut.scaled[0] - 80
        assert cut.corner[1] == 0
    assert cuts(300, 100, crop="random", crops=3) == found[:3]
    assert len({*cuts(128, 128, crop="random")}) == 1, "nothing has to be cut away"


@pytest.mark.parametrize("shape", [(300, 100), (100, 300), (113, 100), (64, 64), (5_000, 10)])
def test_none_is_cut_away_at_a_size_of_its_own_shape(shape):
    (cut,) = cuts_of(*shape, "digest", TrainingOptions(crop="none"), (512, 64))
    width, height = cut.size
    assert cut.scaled == cut.size
    assert width % 64 == height % 64 == 0
    assert width * height <= 512 * 512
    if max(shape) <= 3 * min(shape):
        stretch = (width / height) / (shape[0] / shape[1])
        assert 0.95 < stretch < 1.05
        assert width * height >= 512 * 512 / 2


def test_images_that_are_measured_with_are_cut_in_their_middle():
    assert steadily(TrainingOptions(crop="random")).crop == "center"
    assert steadily(TrainingOptions(crop="none")).crop == "none"


def test_the_number_of_places_has_bounds():
    with pytest.raises(ValidationError, match="crops"):
        TrainingOptions(crop="random", crops=17)


@pytest.fixture
def wide(tmp_path):
    """A wide image that is lighter to the right, and its mask, which is white to the right."""
    data = tmp_path / "data"
    data.mkdir()
    light = np.tile(np.linspace(0, 255, 192, dtype="uint8"), (48, 1))
    PIL.Image.fromarray(np.stack([light] * 3, -1)).save(data / "a.png")
    PIL.Image.fromarray(((light > 127) * 255).astype("uint8")).save(data / "a.mask.png")
    PIL.Image.new("RGB", (64, 64), "red").save(data / "b.png")
    return data


def test_every_place_is_encoded_once_with_the_mask_of_that_very_place(trainer, wide, tmp_path):
    made = trainer(data=wide, crop="random", crops=3)
    lessons = [lesson for lesson in made._lessons if lesson.example.name == "a.png"]
    assert (len(lessons), len(made._lessons)) == (3, 6), "an image counts as much as one that fits"
    assert len(list((tmp_path / "lessons").iterdir())) == 3 + 3 + 1
    # The further to the right a place is, the more of it is under the mask.
    by_place = sorted(lessons, key=lambda lesson: lesson.cut.corner[0])
    shares = [float(read_weights(lesson.mask).mean()) for lesson in by_place]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    (example, _) = read_dataset(wide).examples
    left, right = (np.asarray(lesson.cut.of(example.raster())).mean() for lesson in (by_place[0], by_place[-1]))
    assert left < right
    assert np.isfinite([made.step() for _ in range(3)]).all()
