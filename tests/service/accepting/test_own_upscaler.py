"""A model with an upscaler of its own: which size is drawn, which comes back, and what a request can say against it."""

import json

import pytest

from tests.asking import perform
from tests.fakes.engine import make_context
from tests.images import encoded, gradient
from tests.upscalers import upscaler
from worker.core.errors import ParameterOutOfRange, UnknownParameter

OWN = {"upscale": {"model": "large", "scale": 4}}
PLAIN = {"source": "file:models/sd1", "architecture": "sd1", "limits": {"max_side": 512}, "dtype": "float32"}
ENTRIES = {
    "small": PLAIN | OWN | {"tasks": ["text-to-image", "image-to-image", "inpainting"]},
    "plain": PLAIN,
    "large": {"source": "file:models/large.safetensors"},
    "other": {"source": "file:models/other.safetensors"},
    "filmed": {"source": "org/wan", "architecture": "wan"} | OWN,
}


@pytest.fixture
def context(tmp_path):
    make_context(tmp_path)
    upscaler(tmp_path / "models/large.safetensors", "compact")
    upscaler(tmp_path / "models/other.safetensors", "compact", seed=1)
    (tmp_path / "own.yaml").write_text(json.dumps({"models": ENTRIES}))
    return make_context(tmp_path, models_yaml=tmp_path / "own.yaml", default_model="small", max_resident_models=1)


def image(width, height):
    return encoded(gradient(width, height))


@pytest.mark.parametrize(
    ("fields", "drawn", "scale"),
    [
        ({}, (64, 64), 4),
        ({"upscale": None}, (64, 64), 4),
        ({"upscale": False}, (64, 64), None),
        ({"upscale": "false"}, (64, 64), None),
        ({"upscale": {"model": "other", "scale": 2}}, (64, 64), 2),
        # A named size comes back: drawn small where the upscaler reaches it from the model's own size, else as it is.
        ({"width": 64, "height": 64}, (64, 64), None),
        ({"width": 128, "height": 128}, (128, 128), None),
        ({"width": 256, "height": 256}, (64, 64), 4),
        ({"width": 256, "height": 192}, (64, 48), 4),
        ({"width": 256, "height": 200}, (256, 200), None),
        ({"width": 256, "height": 64}, (256, 64), None),
        ({"width": 512, "height": 256}, (128, 64), 4),
        ({"width": 256, "height": 256, "upscale": False}, (256, 256), None),
        ({"width": 256, "height": 256, "upscale": "large"}, (256, 256), None),
        # An image's own size comes back too, on the grid that the upscaler reaches.
        ({"image": (64, 64)}, (64, 64), None),
        ({"image": (256, 256)}, (64, 64), 4),
        ({"image": (1000, 800)}, (128, 104), 4),
        ({"image": (250, 190)}, (248, 192), None),
        ({"image": (256, 256), "width": 64, "height": 64}, (64, 64), None),
        ({"image": (64, 64), "width": 256, "height": 256}, (64, 64), 4),
        # What is sent comes back: nothing of it is made smaller first.
        ({"image": (256, 256), "strength": 0}, (256, 256), None),
        ({"image": (256, 256), "mask_image": (256, 256)}, (256, 256), None),
    ],
)
async def test_the_size_that_comes_back_is_the_one_that_was_named(context, fields, drawn, scale):
    named = {name: image(*value) if isinstance(value, tuple) else value for name, value in fields.items()}
    job = await context.accept(prompt="an apple", **named)
    assert (job.params["width"], job.params["height"]) == drawn
    last = job.finishing.upscaler
    if scale is None and not isinstance(named.get("upscale"), str):
        assert last is None
    elif last is not None:
        assert last.spec.scale == scale
    assert all((raster.width, raster.height) == drawn for item in job.media for raster in item.images)


async def test_a_model_without_one_takes_false_and_a_wrong_value_is_refused_by_name(context):
    assert (await context.accept(model="plain", prompt="x", upscale=False)).finishing.upscaler is None
    film = await context.accept(model="filmed", prompt="x", upscale=False)
    assert (await context.accept(model="filmed", prompt="x")).finishing.upscaler is film.finishing.upscaler is None
    with pytest.raises(UnknownParameter, match="upscale is not taken"):
        await context.accept(model="filmed", prompt="x", upscale="large")
    for wrong in (True, 4, {"model": "large", "scale": 99}, {"model": "large", "sclae": 2}):
        with pytest.raises((ParameterOutOfRange, UnknownParameter)) as failure:
            await context.accept(prompt="x", upscale=wrong)
        assert failure.value.field == "upscale"


async def test_the_schema_shows_what_comes_back_and_its_example_asks_for_it(context):
    schema = await perform(context.worker, {"action": "schema"})
    sides = [schema["properties"][name]["default"] for name in ("width", "height")]
    assert sides == [256, 256]
    example = schema["examples"][0]
    job = await context.accept(**{name: value for name, value in example.items() if name != "model"})
    assert (job.params["width"], job.finishing.upscaler.spec.scale) == (64, 4)
    assert schema["properties"]["upscale"]["default"] == {"model": "large", "scale": 4}
