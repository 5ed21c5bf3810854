"""Inputs that were written for other workers, by the fields and values that those publish."""

import pytest

from tests.fakes.engine import make_context
from tests.wire.foreign.published import A1111, COG, PLAIN_A1111, PUBLISHED, SDXL, TURBO, WORDS
from worker.core.errors import InvalidRequest, UnknownParameter, WorkerError
from worker.core.finishing import RefinerSpec
from worker.wire.request import decode_input


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "image" not in name])
async def test_a_published_input_draws(tmp_path, name):
    context = make_context(tmp_path, default_model="any")
    answer = await context.ask(**PUBLISHED[name])
    assert answer["prompt"] == WORDS and answer["model"] == "any"
    told = [warning for warning in answer["warnings"] if "Read as an input for" in warning]
    if name == "worker-sdxl":
        assert any("refiner was left out: any has no refiner of its own" in text for text in answer["warnings"])
    foreign = name in ("worker-sdxl", "worker-a1111", "worker-a1111, wrapped", "cog-flux")
    assert len(told) == int(foreign)
    if foreign:
        assert '{"input": {"prompt": ' in told[0]


@pytest.mark.parametrize("field", ["aspect_ratio", "high_noise_frac", "enable_hr"])
async def test_an_input_that_names_one_of_our_models_is_ours_whatever_else_it_has(tmp_path, field):
    context = make_context(tmp_path, default_model="any")
    with pytest.raises(UnknownParameter) as caught:
        await context.ask(prompt=WORDS, model="tiny", **{field: 1})
    assert caught.value.field == field
    assert not context.engine.ran


def decoded(payload):
    job = decode_input(payload)
    if isinstance(job.request, WorkerError):
        raise job.request
    return job.request, job.notes


def test_a_refiner_is_the_models_own_with_its_own_steps():
    request, _ = decoded(SDXL)
    assert request.refiner == RefinerSpec(model="own", start=0.8, steps=50, optional=True)
    assert "strength" not in request.params
    assert request.params["scheduler"] == "K_EULER" and request.seed == 42
    named, _ = decoded(SDXL | {"refiner": "org/refiner"})
    assert named.refiner == RefinerSpec(model="org/refiner")
    for share in (0, 1, "much"):
        none, notes = decoded(SDXL | {"high_noise_frac": share})
        assert none.refiner is None and any("nothing is refined" in note for note in notes)


def test_an_image_is_drawn_over_with_its_strength_and_not_shown_in_the_warning():
    request, notes = decoded(PUBLISHED["worker-sdxl, with an image"])
    assert request.image == "https://host.example/a.png" and request.params["strength"] == 0.3
    assert "host.example" not in "".join(notes)


def test_a_payload_of_the_web_ui_has_its_names_read():
    payload = A1111 | {"init_images": ["QUJD"], "denoising_strength": 0.4, "n_iter": 3}
    request, notes = decoded({"api": {"method": "POST", "endpoint": "/sdapi/v1/img2img"}, "payload": payload})
    assert (request.model, request.image, request.num_images) == ("any", "QUJD", 3)
    assert request.params == {
        "width": 512, "height": 512, "num_inference_steps": 20, "guidance_scale": 7, "scheduler": "Euler a",
        "strength": 0.4,
    }  # fmt: skip
    assert "Ignored here: some_script." in notes


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"api": {"endpoint": "/sdapi/v1/sd-models"}, "payload": {}}, "api"),
        (A1111 | {"enable_hr": True}, "enable_hr"),
        (A1111 | {"init_images": ["QUJD"], "mask": "QUJD", "inpainting_mask_invert": 1}, "mask"),
        (A1111 | {"tiling": True}, "tiling"),
        (COG | {"aspect_ratio": "wide"}, "aspect_ratio"),
        (COG | {"megapixels": "many"}, "megapixels"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(payload, field):
    with pytest.raises(InvalidRequest) as refusal:
        decoded(payload)
    assert refusal.value.field == field


def test_cogs_shapes_have_a_megapixel_and_its_loras_a_weight():
    request, notes = decoded(COG | {"lora_weights": "org/ink", "lora_scale": 0.7, "extra_lora": "org/glow"})
    assert (request.params["width"], request.params["height"]) == (1376, 768)
    assert [(lora.model, lora.weight) for lora in request.adapters] == [("org/ink", 0.7), ("org/glow", 1.0)]
    assert (request.output.format, request.output.quality) == ("webp", 80)
    assert "go_fast has no effect here." in notes
    small, _ = decoded(COG | {"aspect_ratio": "1:1", "megapixels": "0.25"})
    assert small.params["width"] == 512
    over, _ = decoded({"prompt": "x", "image": "https://host.example/a.png", "prompt_strength": 0.6, "go_fast": True,
                       "aspect_ratio": "match_input_image"})  # fmt: skip
    assert over.params == {"strength": 0.6}


def test_our_own_inputs_are_never_translated():
    for payload in (
        PLAIN_A1111,
        TURBO,
        {"prompt": "x", "num_outputs": 2, "steps": 3},
        {"action": "models", "payload": 1},
    ):
        assert decode_input(payload).notes == ()
