"""Upscaler files as models, and as the last step of a generation; and the upscalers of diffusers, through the door."""

import base64
import io
import itertools
import json

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.asking import perform
from tests.builders import enliven_saved
from tests.images import assert_differs, encoded, gradient, pixels
from tests.upscalers import enlarged, real_esrgan, upscaler
from tests.zoo import RECIPES
from tests.zoo.plain import save
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import Settings
from worker.core.errors import (
    IncompatibleAdapter,
    InvalidRequest,
    JobCancelled,
    OutOfMemory,
    ParameterOutOfRange,
    UnknownParameter,
    UnsafeFormat,
    UnsupportedModel,
)
from worker.engine.compatibility import import_spandrel

import_spandrel()
from spandrel.architectures.Compact import Compact  # noqa: E402 -- found only now

_ids = itertools.count()
_RECIPES = {recipe.pipeline: recipe for recipe in RECIPES}
SHARP = np.random.default_rng(3).integers(0, 256, (90, 110, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def shop(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("upscalers")
    models = root / "models"
    for kind in ("esrgan", "esrgan-x2", "compact", "span", "swinir"):
        upscaler(models / f"{kind}.safetensors", kind)
    upscaler(models / "ema.safetensors", prefix="params_ema.", kind="compact")
    upscaler(models / "wrapped.safetensors", prefix="module.", kind="compact")
    both = load_file(models / "ema.safetensors")
    both |= {name.replace("params_ema.", "params."): tensor * 0.5 for name, tensor in both.items()}
    save_file(both, models / "both.safetensors")
    upscaler(models / "real.safetensors", prefix="params_ema.", rename=real_esrgan)
    upscaler(models / "old.pth", prefix="params_ema", kind="esrgan")
    entries = {path.stem: {"source": f"file:{path}"} for path in sorted(models.iterdir())}
    entries["sd1"] = {"source": f"file:{zoo}/models/sd1", "defaults": {"num_inference_steps": 2}}
    (root / "models.yaml").write_text(json.dumps({"models": entries}))
    return Settings(
        models_yaml=root / "models.yaml",
        default_model="sd1",
        allowed_model_dirs=[zoo, root],
        volume_dir=root / "volume",
        device="cpu",
        max_resident_models=2,
        warm_up=False,
    )


@pytest.fixture
def worker(shop):
    return build_worker(shop)


async def ask(worker, emit=lambda progress: None, **fields):
    return await perform(worker, {"seed": 7, **fields}, f"upscale-{next(_ids)}", emit)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(("kind", "scale"), [("esrgan", 4), ("esrgan-x2", 2), ("compact", 4), ("span", 2)])
async def test_tiles_make_the_image_that_one_pass_makes(worker, kind, scale):
    answer = await ask(worker, model=kind, image=encoded(SHARP), tile=64)
    whole = enlarged(kind, SHARP)
    assert (answer["task"], answer["width"], answer["height"]) == ("upscaling", 110 * scale, 90 * scale)
    assert np.abs(pixels(answer).astype(int) - whole).max() <= 1
    assert whole.std() > 5
    assert answer["warnings"] == []


def short_of_memory(monkeypatch, at_most):
    """Let the network fail for tiles of more pixels; the list gets what was tried."""
    run, sizes = Compact.forward, []

    def forward(network, given):
        sizes.append(given.shape[-1] * given.shape[-2])
        if sizes[-1] > at_most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(network, given)

    monkeypatch.setattr(Compact, "forward", forward)
    return sizes


async def test_where_memory_is_short_tiles_become_smaller(worker, monkeypatch):
    whole = enlarged("compact", SHARP)
    sizes = short_of_memory(monkeypatch, at_most=9_000)
    answer = await ask(worker, model="compact", image=encoded(SHARP), tile=128)
    assert max(sizes) > 9_000
    assert np.abs(pixels(answer).astype(int) - whole).max() <= 1


@pytest.mark.slow
async def test_where_memory_is_not_there_the_job_fails_and_the_next_does_not(worker, monkeypatch):
    sent = {"model": "compact", "image": encoded(SHARP), "tile": 128}
    with monkeypatch.context() as patch:
        short_of_memory(patch, at_most=1_000)
        with pytest.raises(OutOfMemory):
            await ask(worker, **sent)
    answer = await ask(worker, **sent)
    assert np.abs(pixels(answer).astype(int) - enlarged("compact", SHARP)).max() <= 1


async def test_windows_of_attention_leave_no_seam(worker):
    """SwinIR's windows lie elsewhere in a tile than in the whole; the difference must not show."""
    image = gradient(110, 90)
    answer, whole = await ask(worker, model="swinir", image=encoded(image), tile=64), enlarged("swinir", image)
    assert np.abs(pixels(answer).astype(int) - whole).max() <= 3


@pytest.mark.parametrize("names", [("compact", "ema"), ("compact", "wrapped"), ("compact", "both"), ("esrgan", "real")])
async def test_saved_otherwise_it_is_the_same(worker, names):
    first, second = [await ask(worker, model=name, image=encoded(SHARP)) for name in names]
    assert np.array_equal(pixels(first), pixels(second))


async def test_scale_is_of_the_image_that_was_sent(worker):
    image = encoded(gradient(50, 30))
    doubled = await ask(worker, model="esrgan", image=image, scale=2)
    assert (doubled["width"], doubled["height"], doubled["parameters"]["scale"]) == (100, 60, 2)
    again = await ask(worker, **doubled["reproduce"]["input"])
    assert np.array_equal(pixels(again), pixels(doubled))
    tiny = await ask(worker, model="esrgan", image=encoded(gradient(3, 2)))
    assert (tiny["width"], tiny["height"]) == (12, 8)


async def test_what_is_transparent_stays_so(worker):
    image = Image.fromarray(gradient(64, 48)).convert("RGBA")
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:, 32:] = 255
    image.putalpha(Image.fromarray(alpha))
    out = io.BytesIO()
    image.save(out, "PNG")
    sent = base64.b64encode(out.getvalue()).decode()
    answer = await ask(worker, model="compact", image=sent)
    drawn = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert drawn.mode == "RGBA"
    large = np.asarray(drawn.getchannel("A")).astype(int)
    assert large[:, :100].max() < 64 < 192 < large[:, 156:].min()
    flat = await ask(worker, model="compact", image=sent, output={"format": "jpeg"})
    assert "transparency" in flat["warnings"][0]
    assert pixels(flat)[:, :80].min() > 150  # white shines through


async def test_it_stops_between_tiles(worker):
    generation, steps = worker.operations.generation, []
    accept, jobs = generation._accept, []

    async def accept_and_keep(asked):
        jobs.append(await accept(asked))
        return jobs[-1]

    def cancel(progress):
        if progress.phase == "inference":
            steps.append((progress.step, progress.total))
            if progress.step == 2:
                jobs[-1].stop.cancel()

    generation._accept = accept_and_keep
    with pytest.raises(JobCancelled):
        await ask(worker, cancel, model="esrgan", image=encoded(SHARP), tile=64)
    assert steps[-2:] == [(1, 4), (2, 4)]
    generation._accept = accept
    again = await ask(worker, model="esrgan", image=encoded(SHARP))
    assert np.abs(pixels(again).astype(int) - enlarged("esrgan", SHARP)).max() <= 1


async def test_a_pickle_is_refused_until_the_operator_allows_it(worker, shop):
    with pytest.raises(UnsafeFormat, match="pickle"):
        await ask(worker, model="old", image=encoded(SHARP))
    assert worker.engine.resident_models == []
    allowed = build_worker(shop.model_copy(update={"allow_pickles": True}))
    answer = await ask(allowed, model="old", image=encoded(SHARP))
    assert np.abs(pixels(answer).astype(int) - enlarged("esrgan", SHARP)).max() <= 1


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({}, InvalidRequest, "image"),
        ({"width": 512}, UnknownParameter, "width"),
        ({"num_inference_steps": 9}, UnknownParameter, "num_inference_steps"),
        ({"loras": ["org/any"]}, UnknownParameter, "loras"),
        ({"scheduler": "euler"}, UnknownParameter, "scheduler"),
        ({"scale": 9}, ParameterOutOfRange, "scale"),
        ({"tile": 8}, ParameterOutOfRange, "tile"),
        ({"refiner": "sd1"}, UnknownParameter, "refiner"),
        ({"upscale": "compact"}, UnknownParameter, "upscale"),
        ({"negative_prompt": "x"}, UnknownParameter, "negative_prompt"),
    ],
)
async def test_what_an_upscaler_does_not_take_is_refused_by_name(worker, fields, error, field):
    image = {"image": encoded(SHARP)} if fields else {}
    with pytest.raises(error) as failure:
        await ask(worker, model="esrgan", **image, **fields)
    assert failure.value.field == field
    assert not worker.engine.ready


async def test_an_image_that_would_become_too_large_is_refused_before_anything_is_loaded(worker):
    image = encoded(np.zeros((2_100, 2_100, 3), np.uint8))
    with pytest.raises(ParameterOutOfRange, match="67,108,864") as failure:
        await ask(worker, model="esrgan", image=image)
    assert failure.value.field == "image"
    assert "scale" in failure.value.message
    assert not worker.engine.ready


async def test_its_schema_lists_what_it_takes(worker):
    schema = await perform(worker, {"action": "schema", "model": "esrgan"}, "s", lambda progress: None)
    assert {"image", "scale", "tile", "output", "num_images"} <= schema["properties"].keys()
    unwanted = {"width", "height", "num_inference_steps", "loras", "scheduler", "refiner", "upscale", "negative_prompt"}
    assert not unwanted & schema["properties"].keys()
    assert not Draft202012Validator(schema).is_valid({"scale": 2})
    Draft202012Validator(schema).validate({"images": ["https://example.com/a.png"], "scale": 2})
    assert schema["properties"]["tile"]["maximum"] == 2_048


async def test_a_face_restorer_is_refused_by_name(worker, shop):
    path = shop.models_yaml.parent / "models" / "face.safetensors"
    save_file({"stylegan_decoder.style_mlp.1.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UnsupportedModel, match="face restorer"):
        await ask(build_worker(shop.model_copy(update={"allow_unregistered_models": True})), model=f"file:{path}")


async def test_the_last_step_of_a_generation_enlarges_what_was_drawn(worker):
    before = await ask(worker, prompt="a red apple", num_images=2)
    answer = await ask(worker, prompt="a red apple", num_images=2, upscale="compact")
    assert (answer["width"], answer["height"], answer["task"]) == (256, 256, "text-to-image")
    for index in range(2):
        assert np.array_equal(pixels(answer, index), enlarged("compact", pixels(before, index)))
    assert answer["parameters"]["upscale"]["model"] == "compact"
    assert answer["usage"]["pixel_steps"] == before["usage"]["pixel_steps"]
    again = await ask(worker, **answer["reproduce"]["input"])
    assert np.array_equal(pixels(again, 1), pixels(answer, 1))
    smaller = await ask(worker, prompt="a red apple", upscaler={"model": "compact", "scale": 1.5})
    assert smaller["width"] == 96
    assert np.array_equal(pixels(await ask(worker, prompt="a red apple", num_images=2)), pixels(before))


async def test_what_is_no_upscaler_is_refused_as_the_last_step(worker):
    with pytest.raises(IncompatibleAdapter, match="not an upscaler") as failure:
        await ask(worker, prompt="x", upscale="sd1")
    assert failure.value.field == "upscale"
    assert not worker.engine.ready


@pytest.mark.parametrize(
    ("pipeline", "scale"),
    [
        ("StableDiffusionUpscalePipeline", 4),
        ("StableDiffusionLatentUpscalePipeline", 2),
        ("LDMSuperResolutionPipeline", 1),
    ],
)
async def test_upscalers_of_diffusers_run_through_the_door(tmp_path, pipeline, scale):
    folder = tmp_path / "models" / "it"
    enliven_saved(save(_RECIPES[pipeline], folder), latents=30.0)
    (tmp_path / "models.yaml").write_text('{"models": {"it": {"source": "file:models/it"}}}')
    worker = build_worker(
        Settings(models_yaml=tmp_path / "models.yaml", default_model="it", volume_dir=tmp_path, device="cpu")
    )
    door = build_door(worker, concurrency=1)
    fields = {**_RECIPES[pipeline].fields(), "seed": 1}
    first = await door.handle({"id": "a", "input": fields})
    assert "error" not in first, first
    assert first["task"] == "upscaling"
    with Image.open(io.BytesIO(base64.b64decode(fields["image"]))) as sent:
        width, height = sent.size
    other = await door.handle({"id": "b", "input": {**fields, "image": encoded(255 - gradient(width, height))}})
    assert_differs(pixels(first), pixels(other))
    assert pixels(first).shape[1] >= width * scale
