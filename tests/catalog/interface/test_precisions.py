"""The precisions of a model: what is refused is not in its schema."""

import pytest

from worker.catalog.call import Model
from worker.catalog.interface.precisions import precisions, settled
from worker.catalog.interface.schema import model_schema
from worker.core.device import DeviceInfo
from worker.core.errors import UnsupportedModel
from worker.core.model import Detection, Kind, ModelSource, ModelSpec
from worker.core.precision import PRECISIONS
from worker.engine.plan import target_dtype


def model(precision=None, kind=Kind.PIPELINE, quantization=None, pipeline="FluxPipeline"):
    source = ModelSource(scheme="hf", locator="org/model")
    spec = ModelSpec(id="m", source=source, precision=precision)
    found = Detection(kind, "diffusers", "flux1", pipeline, quantization=quantization)
    return Model(spec, found)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quantization": "gguf"}, "is stored as GGUF and stays so"),
        ({"quantization": "bitsandbytes"}, "is stored as bitsandbytes and stays so"),
        ({"kind": Kind.UPSCALER}, "is an upscaler, one small network"),
        (
            {"pipeline": "LTXLatentUpsamplePipeline"},
            "is an upsampler of latents, whose networks are convolutions alone",
        ),
        ({"quantization": None}, None),
        ({"quantization": "fp8-scaled"}, None),  # made plain as it is read
    ],
)
def test_what_is_small_already_is_made_no_smaller(changes, reason):
    whole = {"auto", "bf16", "fp16", "fp32"}
    offered = model_schema(model(**changes), max_images=1, max_loras=1)["properties"]["precision"]["enum"]
    assert {*precisions(model(**changes))} == {*offered} - {None} == (whole if reason else {*PRECISIONS})
    for precision in PRECISIONS:
        asked = model(precision, **changes)
        if reason is None or precision in whole:
            assert settled(asked, None) == asked
            continue
        with pytest.raises(
            UnsupportedModel, match=f"precision {precision}: m {reason}; leave precision out"
        ) as refused:
            settled(asked, None)
        assert refused.value.field == "precision"


def test_a_models_own_precision_goes_before_the_workers_and_stands_in_its_schema():
    assert settled(model("fp8"), "int8").spec.precision == "fp8"
    assert settled(model(), "int8").spec.precision == "int8"
    assert settled(model(quantization="gguf"), "int8").spec.precision is None
    schema = model_schema(settled(model(), "int8"), max_images=1, max_loras=1)
    assert schema["properties"]["precision"]["default"] == "int8"


def repaint(**changes):
    """A model whose class hands its image to NumPy, which has no bfloat16."""
    source = ModelSource(scheme="hf", locator="org/model")
    spec = ModelSpec(id="m", source=source, **changes)
    return Model(spec, Detection(Kind.PIPELINE, "diffusers", None, "RePaintPipeline"))


def test_a_class_that_has_no_bfloat16_is_offered_and_given_none():
    offered = model_schema(repaint(), max_images=1, max_loras=1)["properties"]["precision"]["enum"]
    assert {*precisions(repaint())} == {*offered} - {None} == {*PRECISIONS} - {"bf16"}
    with pytest.raises(
        UnsupportedModel,
        match=r"^precision bf16: m runs as RePaintPipeline, which cannot compute in bfloat16; send fp16 or fp32, or "
        r"leave precision out\.$",
    ) as refused:
        settled(repaint(precision="bf16"), None)
    assert refused.value.field == "precision"


@pytest.mark.parametrize(("dtype", "computed_in"), [(None, "float32"), ("bfloat16", "float32"), ("float16", "float16")])
def test_a_class_that_has_no_bfloat16_computes_on_a_gpu_in_a_dtype_that_it_has(dtype, computed_in):
    gpu = DeviceInfo("cuda", "a device", 24 * 2**30, 24 * 2**30)
    for precision in (None, "fp8"):
        known = settled(repaint(dtype=dtype, precision=precision), "bf16")
        assert target_dtype(known.spec, gpu) == computed_in
    assert target_dtype(settled(repaint(dtype=dtype, precision="fp16"), None).spec, gpu) == "float16"
    assert settled(repaint(dtype=dtype), "bf16").spec.precision is None  # the worker's own wish cannot be had
