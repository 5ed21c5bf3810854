"""What the gallery shows, in figures: each row is drawn by the worker, with the model in the box."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.conftest import PROJECT
from tests.demo.test_demo_jobs import purple
from tools.gallery import (
    ROWS,
    Studio,
    control,
    edit,
    hole,
    inpaint,
    lora,
    negative,
    outpaint,
    sheet,
    trained,
    weigh,
    word,
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("gallery").resolve())


def rows_of(row):
    return {caption: np.asarray(image).astype(int) for caption, image in row.images}


def centre(image):
    """Where the thing is: the mean place of what is not the white page."""
    y, x = np.nonzero(image.min(axis=-1) < 200)
    return np.array([x.mean(), y.mean()])


def test_an_edit_keeps_the_place_of_the_thing(studio):
    source, lemon = rows_of(edit(studio)).values()
    unmoved = np.asarray(studio.draw("a lemon")).astype(int)
    assert np.abs(lemon - source).mean() > 10
    assert np.linalg.norm(centre(lemon) - centre(source)) < 4
    assert np.linalg.norm(centre(unmoved) - centre(source)) > 5


def test_an_inpaint_fills_the_hole_alone(studio):
    apple, _, filled = rows_of(inpaint(studio)).values()
    inside = np.asarray(hole())[..., 0] > 0
    assert np.abs(filled - apple)[~inside].max() <= 1
    assert np.abs(filled - apple)[inside].mean() > 20


def test_an_outpaint_goes_on_beyond_the_border(studio):
    half, whole = rows_of(outpaint(studio)).values()
    assert whole.shape == (64, 64, 3)
    assert np.abs(whole[:, :40] - half).max() <= 1
    assert whole[:, 40:].std() > 30  # a face and its background, not the border drawn out
    assert np.abs(whole[:, 40:] - half[:, 39:]).mean() > 10


@pytest.mark.slow
def test_a_lora_takes_the_colour_out_by_its_weight(studio):
    colour = [np.ptp(image, axis=-1).mean() for image in rows_of(lora(studio)).values()]
    assert colour[0] > 1.3 * colour[1] > 1.3 * colour[2]


@pytest.mark.slow
def test_a_trained_style_is_drawn_of_things_that_were_not_in_it(studio):
    plain, robot, panda = rows_of(trained(studio, steps=100)).values()
    blue = [float((image[..., 2] - image[..., 0]).mean()) for image in (plain, robot, panda)]
    assert min(blue[1:]) > blue[0] + 60
    assert np.abs(robot - panda).mean() > 8, "each is its own thing"


def edges(image):
    """Where an image changes."""
    found = np.array(Image.fromarray(image.astype(np.uint8)).convert("L").filter(ImageFilter.FIND_EDGES)) > 40
    found[[0, -1], :] = found[:, [0, -1]] = False  # the filter leaves the border as it was
    return found


@pytest.mark.slow
def test_a_controlnet_follows_the_edges_that_canny_finds(studio):
    shown, followed, free = map(edges, rows_of(control(studio)).values())

    def overlap(drawn):
        return (drawn & shown).sum() / (drawn | shown).sum()

    assert overlap(followed) > 1.3 * overlap(free)


@pytest.mark.slow
def test_a_textual_inversions_word_can_be_put_on_a_background(studio):
    unknown, alone, placed = rows_of(word(studio)).values()
    assert min(purple(alone), purple(placed)) > 500 > purple(unknown)
    corners = [image[[0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=0) for image in (alone, placed)]
    assert corners[0].min() > 220  # white
    assert corners[1][:2].min() > 150 > corners[1][2]  # yellow: red and green, and little blue


@pytest.mark.slow
def test_a_negative_prompt_takes_away_what_it_names(studio):
    plain, without = rows_of(negative(studio)).values()
    red = [(image[..., 0] - image[..., 1:].max(axis=-1)).clip(min=0).mean() for image in (plain, without)]
    assert red[0] > 1.3 * red[1]


def orange(image):
    """How much of an image has the colour of a fox."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return ((red > 180) & (blue < 90) & (green > 60) & (green < 180)).mean()


@pytest.mark.slow
def test_what_counts_for_more_in_the_prompt_is_what_is_drawn(studio):
    fox, between, panda = map(orange, rows_of(weigh(studio)).values())
    assert fox > between + 0.03 > panda + 0.13
    others = [(orange(np.asarray(fox)), orange(np.asarray(panda))) for fox, panda in _weighed(studio, seeds=(3, 11))]
    assert all(fox > panda + 0.1 for fox, panda in others)


def _weighed(studio, seeds):
    words = ("a (fox:1.6) (panda:0.4)", "a (fox:0.4) (panda:1.6)")
    return [tuple(studio.draw(prompt, seed=seed) for prompt in words) for seed in seeds]


def test_the_sheet_is_small_and_in_the_readme(studio):
    drawn = [row(studio) for row in ROWS[:2]]
    assert sheet(drawn).width > 300
    image = PROJECT / "docs/gallery.png"
    assert 5_000 < image.stat().st_size < 300_000
    assert "docs/gallery.png" in (PROJECT / "README.md").read_text()
