"""Which GPU of several has which component, and what each needs: numbers in, a plan or a refusal out; no torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from worker.catalog.call import Model
from worker.core import precision as precisions
from worker.core.device import Card, DeviceInfo
from worker.core.errors import OutOfMemory, UnsupportedModel
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec
from worker.core.precision import Reducible
from worker.engine.cards import GIB
from worker.engine.plan import make_plan, memory_ways, resident_key

# FLUX.1 in half precision: transformer 22.2 GiB, T5 8.9, CLIP 0.2, VAE 0.2.
FLUX = {"transformer": 11_901_408_320, "text_encoder_2": 4_762_310_656, "text_encoder": 123_060_480, "vae": 83_819_683}
REDUCIBLE = {"transformer": Reducible(11_000_000_000), "text_encoder_2": Reducible(4_000_000_000)}


def known(wanted="balanced", **spec):
    source = ModelSource(scheme="hf", locator="a/m")
    found = Detection(Kind.PIPELINE, spec.pop("format", "diffusers"), "flux1", "FluxPipeline")
    found = replace(found, kind=spec.pop("kind", Kind.PIPELINE))
    return Model(ModelSpec(id="m", source=source, dtype="bfloat16", device_map=wanted, **spec), found)


def files(parameters=None, **more):
    return ModelFiles(Path("m"), 0, parameters=FLUX if parameters is None else parameters, reducible=REDUCIBLE, **more)


def gpus(*free):
    cards = tuple(Card(f"Card {number}", 48 * GIB, int(gib * GIB)) for number, gib in enumerate(free))
    return DeviceInfo("cuda", "Card 0", 48 * GIB, cards[0].free_bytes, cards)


def plan(wanted="balanced", *, free=(28, 28), parameters=None, more=None, **spec):
    return make_plan(known(wanted, **spec), files(parameters, **more or {}), gpus(*free), megapixels=1.0)


def test_a_model_that_is_too_large_for_each_of_two_gpus_fits_on_both_together():
    made = plan()
    assert made.cards == {"transformer": 0, "vae": 0, "text_encoder_2": 1, "text_encoder": 1}
    assert (made.offload, made.precision) == ("none", "bf16")
    alone = make_plan(known(None), files(), gpus(28, 28), megapixels=1.0)
    assert alone.offload != "none"
    assert sum(made.card_bytes) == made.estimated_bytes > alone.estimated_bytes
    assert made.card_bytes[1] == 2 * (FLUX["text_encoder_2"] + FLUX["text_encoder"]) + 768 * 2**20
    assert "transformer, vae on GPU 0" in made.reasons[0]


def test_the_largest_goes_where_most_is_left():
    two = {"transformer": 14_000_000_000, "transformer_2": 14_000_000_000, "text_encoder": 5_700_000_000, "vae": 1}
    made = plan(parameters=two, free=(44, 40, 24))
    assert made.cards == {"transformer": 0, "vae": 0, "transformer_2": 1, "text_encoder": 2}
    assert plan(parameters={"big": 9_000_000_000, "small": 10}, free=(24, 24)).cards == {"big": 0, "small": 1}


def test_who_computes_images_needs_the_memory_for_them_on_its_gpu():
    reading = plan({"text_encoder_2": 1}).card_bytes
    decoding = plan({"text_encoder_2": 1, "vae": 1}).card_bytes
    moved = 2 * FLUX["vae"]
    assert decoding[0] == reading[0] - moved
    assert decoding[1] > reading[1] + moved


def test_what_does_not_fit_is_named_with_its_gpu_and_numbers():
    with pytest.raises(
        OutOfMemory, match=r"m needs 9\.8 GiB on GPU 1 for text_encoder, text_encoder_2, and Card 1 has"
    ):
        plan({"text_encoder": 1, "text_encoder_2": 1}, free=(40, 9))
    with pytest.raises(OutOfMemory, match=r"on GPU 0 for text_encoder, text_encoder_2, transformer, and Card 0 has"):
        plan({"vae": 1}, free=(24, 24))
    with pytest.raises(OutOfMemory, match="needs a GPU with 120 GB"):
        plan(min_vram_gb=120)
    assert plan(min_vram_gb=90).cards  # both together


@pytest.mark.parametrize(
    ("wanted", "change", "sentence"),
    [
        ("balanced", {"free": (80,)}, "needs 2 GPUs and this process has 1; .*remove device_map"),
        ({"vae": 3}, {}, "needs 4 GPUs and this process has 2"),
        ({"tokenizer": 1}, {}, "names tokenizer, .*with weights are text_encoder, text_encoder_2, transformer, vae"),
        ("balanced", {"format": "modular"}, "a modular pipeline is not spread"),
        ("balanced", {"kind": Kind.UPSCALER}, "an upscaler is not spread"),
        ({"text_encoder_2": 1}, {"more": {"packed": {"text_encoder_2": 10}}}, "moves text_encoder_2, .*quantized"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(wanted, change, sentence):
    with pytest.raises(UnsupportedModel, match=f"device_map.*{sentence}") as caught:
        plan(wanted, **change)
    assert caught.value.field == "model"


def test_what_is_stored_quantized_stays_on_the_first_gpu():
    made = plan(more={"packed": {"text_encoder_2": 10}}, free=(48, 48))
    assert made.cards == {"transformer": 0, "vae": 0, "text_encoder_2": 0, "text_encoder": 1}


def test_weights_are_made_smaller_by_what_moves_between_gpus(monkeypatch):
    monkeypatch.setattr(precisions, "find_spec", lambda package: package)  # all packages are installed
    assert plan(precision="8bit").quantizer == "gguf"
    assert plan(precision="fp8").quantizer == "casting"
    assert (plan(precision="auto").precision, plan(precision="auto", free=(18, 18)).precision) == ("bf16", "fp8")


def test_before_its_components_are_counted_all_gpus_are_taken_together():
    there = ModelFiles(Path("m"), 34 * 10**9)
    made = make_plan(known(), there, gpus(24, 24), megapixels=1.0)
    assert (made.cards, made.card_bytes) == ({}, ())
    assert "once each component is counted" in made.reasons[0]
    with pytest.raises(OutOfMemory, match=r"GiB on 2 GPUs, which have 30\.0 GiB free together"):
        make_plan(known(), there, gpus(15, 15), megapixels=1.0)


def test_one_file_is_on_the_first_gpu_and_its_companions_where_they_are_wanted():
    parts = {"model": FLUX["transformer"], "text_encoder_2": FLUX["text_encoder_2"], "vae": FLUX["vae"]}
    assert plan(parameters=parts).cards == {"model": 0, "vae": 0, "text_encoder_2": 1}
    asked = plan({"text_encoder": 1}, parameters=parts, free=(48, 24))
    assert asked.cards["text_encoder"] == 1  # in the file itself, perhaps: the loader sees


def test_a_gateway_counts_what_the_fullest_gpu_needs():
    ((offload, needed),) = memory_ways(known(), files(), DeviceInfo("cuda", "a GPU", 0, 0), megapixels=1.0)
    assert (offload, needed) == ("none", plan(free=(48, 48)).card_bytes[0])
    ((_, half),) = memory_ways(known(), ModelFiles(Path("m"), 32 * GIB), DeviceInfo("cuda", "x", 0, 0), megapixels=1.0)
    assert 16 * GIB < half < 20 * GIB


def test_two_maps_are_two_loads():
    keys = {resident_key(known(wanted).spec, files()) for wanted in (None, "balanced", {"vae": 1}, {"text_encoder": 1})}
    assert len(keys) == 4
