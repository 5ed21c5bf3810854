"""What is refused by name: each reason is looked at in the installed libraries, so that none outlives its cause."""

import inspect
from importlib.util import find_spec

import diffusers
import pytest
import transformers

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.capabilities import (
    PART_PACKAGES,
    STORAGES,
    check_loadable,
    check_pipeline,
)
from worker.catalog.detector import detect
from worker.catalog.pipelines.table import PIPELINES, UPSCALE_PIPELINE
from worker.core.errors import UnsupportedModel
from worker.core.model import Detection, Kind, Outline


def named_classes():
    for row in ARCHITECTURES:
        for name in (*row.pipelines.values(), *row.classes):
            yield pytest.param(name, id=f"{row.id}-{name}")


@pytest.mark.parametrize("name", sorted({value.values[0] for value in named_classes()}))
def test_every_class_of_the_tables_exists_and_is_no_placeholder(name):
    cls = getattr(diffusers, name)
    assert issubclass(cls, diffusers.DiffusionPipeline)
    assert not hasattr(cls, "_backends"), "a stand-in for a class whose packages are missing"


@pytest.mark.parametrize("name", [name for name, row in PIPELINES.items() if row.broken or row.package])
def test_what_is_refused_exists(name):
    assert hasattr(diffusers, name) or name == UPSCALE_PIPELINE


def test_the_reasons_of_what_is_broken_still_hold():
    assert "guidance_embeds" not in inspect.signature(diffusers.ChromaTransformer2DModel.__init__).parameters
    assert "cache_mag_vae" not in inspect.signature(diffusers.AutoencoderKLMagvit.__init__).parameters
    assert not hasattr(transformers.PreTrainedModel, "invert_attention_mask")
    prompt = inspect.signature(diffusers.EasyAnimateControlPipeline.encode_prompt).parameters
    assert "text_encoder_index" not in prompt
    assert "text_encoder_index=" in inspect.getsource(diffusers.EasyAnimateControlPipeline.__call__)
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    dual = inspect.signature(DualTransformer2DModel.forward).parameters
    assert "encoder_attention_mask" not in dual, "which every block gives to its attention"
    for name, text in (("ChromaInpaintPipeline", "guidance_embeds"), ("EasyAnimateInpaintPipeline", "cache_mag_vae")):
        assert text in inspect.getsource(getattr(diffusers, name).__call__)


@pytest.mark.parametrize("name", [name for name, row in PIPELINES.items() if row.broken])
def test_a_broken_pipeline_is_refused_with_the_reason(name):
    with pytest.raises(UnsupportedModel, match=f"{name}, which m needs, is broken in the installed libraries: it"):
        check_pipeline("m", name)


def test_a_missing_package_is_named():
    with pytest.raises(UnsupportedModel, match="needs the Python package cosmos_guardrail") as failure:
        check_pipeline("m", "Cosmos2TextToImagePipeline")
    assert failure.value.details == {"package": "cosmos_guardrail"}


@pytest.mark.parametrize("storage", [name for name, row in STORAGES.items() if row.refusal])
def test_a_storage_that_is_not_read_is_refused_with_the_reason_and_a_way_round(storage):
    found = Detection(Kind.CHECKPOINT, f"safetensors/{storage}", quantization=storage)
    with pytest.raises(UnsupportedModel, match=r"is not read here: .*; use a plain") as failure:
        check_loadable("m", found)
    assert failure.value.field == "model"


@pytest.mark.parametrize("found", [None, "fp8", "fp8-scaled", "gguf"])
def test_what_is_read_passes(found):
    check_loadable("m", Detection(Kind.CHECKPOINT, "safetensors", quantization=found))


def test_a_method_that_nobody_knows_is_refused_by_its_own_name():
    with pytest.raises(UnsupportedModel, match="quantized as hqq"):
        check_loadable("m", Detection(Kind.PIPELINE, "diffusers", quantization="hqq"))


def test_diffusers_methods_are_all_in_the_table():
    from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    assert known - {"bfl"} <= STORAGES.keys()


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="only seen where torchvision is missing")
@pytest.mark.parametrize("name", PART_PACKAGES)
def test_a_part_that_needs_a_package_is_refused_by_name_before_its_weights_are_fetched(name):
    configs = {"model_index.json": {"_class_name": "QwenImageEditPipeline", "processor": ["transformers", name]}}
    with pytest.raises(UnsupportedModel, match=f"{name}, which m has, needs the Python package torchvision"):
        check_loadable("m", detect(Outline(configs)))
    ours = getattr(transformers, name)
    lacking = ours if hasattr(ours, "_backends") else transformers.Qwen2VLVideoProcessor
    assert "torchvision" in lacking._backends


def test_a_class_that_the_installed_diffusers_lacks_is_refused_before_a_download():
    detection = detect(Outline(configs={"model_index.json": {"_class_name": "LensPipeline"}}))
    with pytest.raises(
        UnsupportedModel, match=f"LensPipeline.* not in the installed diffusers {diffusers.__version__}"
    ):
        check_loadable("some/Lens", detection)


def test_a_modular_class_is_read_from_a_modular_repository_only():
    assert hasattr(diffusers, "AnimaModularPipeline")
    detection = detect(Outline(configs={"model_index.json": {"_class_name": "AnimaModularPipeline"}}))
    with pytest.raises(UnsupportedModel, match=r"AnimaModularPipeline.* read from its modular repository only"):
        check_loadable("some/Anima", detection)
