from dataclasses import replace

import pytest

from tests.catalog.corpus import index, stored
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.base_models import (
    CIVITAI_BASES,
    CIVITAI_KINDS,
    HOSTED_ONLY,
    declared_base,
    known_base,
    says_v_prediction,
    variant_in,
)
from worker.catalog.detector import detect, detect_header
from worker.core.errors import UnsupportedModel
from worker.core.model import Declaration, Kind, Outline, Task

ROWS = {row.id: row for row in ARCHITECTURES}


def seen(header: str, /, **declared: object):
    return detect(Outline(header=stored(header), declared=Declaration(**declared)))


# --- what a declaration decides


@pytest.mark.parametrize(
    ("name", "base", "architecture", "variant", "pipeline"),
    [
        ("flux1", "Flux.1 Kontext", "flux1-kontext", None, "FluxKontextPipeline"),
        ("flux1", "Flux.1 Krea", "flux1", "krea", "FluxPipeline"),
        ("flux1", "Flux.1 D", "flux1", None, "FluxPipeline"),
        ("sdxl", "Pony", "sdxl", "pony", "StableDiffusionXLPipeline"),
        ("sdxl", "Illustrious", "sdxl", "illustrious", "StableDiffusionXLPipeline"),
        ("sdxl", "SDXL Lightning", "sdxl", "lightning", "StableDiffusionXLPipeline"),
        ("sdxl", "SDXL Turbo", "sdxl", "turbo", "StableDiffusionXLPipeline"),
        ("sdxl", "stabilityai/sdxl-turbo", "sdxl", "turbo", "StableDiffusionXLPipeline"),
        ("sd1", "SD 1.5 LCM", "sd1", "lcm", "StableDiffusionPipeline"),
        ("sd3", "SD 3.5 Large Turbo", "sd3", "turbo", "StableDiffusion3Pipeline"),
        ("z-image-diffusers", "ZImageBase", "z-image", "base", "ZImagePipeline"),
        ("z-image-gguf", "Tongyi-MAI/Z-Image-Turbo", "z-image", "turbo", "ZImagePipeline"),
        ("flux2-klein-diffusers", "Flux.2 Klein 4B-base", "flux2-klein", "base", "Flux2KleinPipeline"),
        ("qwen-image", "Qwen/Qwen-Image-Edit", "qwen-image-edit", None, "QwenImageEditPipeline"),
        ("qwen-image", "Qwen/Qwen-Image-Edit-2509", "qwen-image-edit-plus", None, "QwenImageEditPlusPipeline"),
        ("auraflow-diffusers", "Pony V7", "auraflow", "pony", "AuraFlowPipeline"),
    ],
)
def test_what_the_header_cannot_show_is_declared(name, base, architecture, variant, pipeline):
    found = seen(name, base=base)
    assert (found.architecture, found.variant, found.pipeline) == (architecture, variant, pipeline)
    if variant or architecture != detect_header(stored(name)).architecture:
        assert found.confidence == "medium"
        assert any(base in fact for fact in found.evidence)


def test_kontext_edits():
    assert seen("flux1", base="Flux.1 Kontext").tasks == (Task.IMAGE_EDITING, Task.INPAINTING)
    assert seen("flux1", pipeline="FluxKontextPipeline").architecture == "flux1-kontext"


@pytest.mark.parametrize(
    ("name", "declared", "prediction", "zero", "confidence"),
    [
        ("sdxl", {"base": "NoobAI", "name": "NoobAI-XL v-pred 1.0"}, "v_prediction", True, "low"),
        ("sdxl", {"base": "NoobAI", "tags": ("v-pred",)}, "v_prediction", True, "medium"),
        ("sdxl", {"base": "NoobAI"}, None, False, "medium"),
        ("sdxl", {"prediction_type": "v_prediction"}, "v_prediction", False, "medium"),
        ("sdxl-v-prediction", {"prediction_type": "epsilon"}, "v_prediction", True, "high"),
        ("sd2", {"base": "SD 2.1 768"}, "v_prediction", False, "medium"),
        ("sd2", {"base": "stabilityai/stable-diffusion-2-base"}, "epsilon", False, "medium"),
        ("sd2", {"base": "SD 2.1"}, None, False, "high"),
        ("flux1", {"name": "vpred"}, None, False, "high"),
        ("lora-sdxl-kohya", {"name": "vpred style"}, None, False, "high"),
    ],
)
def test_the_prediction_type(name, declared, prediction, zero, confidence):
    found = seen(name, **declared)
    assert (found.prediction_type, found.zero_snr, found.confidence) == (prediction, zero, confidence)


def test_a_lora_whose_keys_do_not_tell_takes_the_declared_base():
    found = seen("lora-sd1-text-encoder-only", base="SD 1.5")
    assert (found.architecture, found.confidence) == ("sd1", "medium")
    assert seen("lora-qwen-image-undecidable", base="Qwen").architecture == "qwen-image"
    assert seen("lora-flux1-kohya", base="Chroma").architecture == "chroma"
    assert seen("lora-flux1-kohya", base="Flux.1 Kontext").architecture == "flux1"
    assert seen("lora-qwen-image-undecidable").architecture is None


# --- who wins


def test_the_header_beats_the_page_and_the_contradiction_is_told():
    found = seen("sd1", base="SDXL 1.0")
    assert (found.architecture, found.confidence) == ("sd1", "high")
    assert "the page says SDXL 1.0, which the tensors contradict" in found.evidence
    found = seen("flux1-schnell", base="Flux.1 Kontext")
    assert found.architecture == "flux1-schnell"
    found = seen("sdxl", kind="LORA")
    assert (found.kind, found.confidence) == (Kind.CHECKPOINT, "high")
    assert "the page says lora, which the tensors contradict" in found.evidence


def test_the_page_beats_the_files_metadata_and_both_beat_a_title():
    header = replace(
        stored("sdxl"), metadata={"modelspec.title": "My Turbo mix", "ss_base_model_version": "sdxl_lightning"}
    )
    assert detect(Outline(header=header)).variant == "lightning"
    assert detect(Outline(header=header, declared=Declaration(base="Pony"))).variant == "pony"
    header = replace(header, metadata={"modelspec.title": "My Turbo mix"})
    found = detect(Outline(header=header))
    assert (found.variant, found.confidence) == ("turbo", "low")


@pytest.mark.parametrize(
    "name", ["NoobAI-XL-Vpred-v1.0", "noobaiXLNAIXL_vPred10Version", "model v-prediction", "x_v_pred"]
)
def test_a_file_name_tells_v_prediction_where_no_marker_does(name):
    found = detect(Outline(header=stored("sdxl-unet"), file_name=f"{name}.safetensors"))
    assert (found.architecture, found.prediction_type, found.confidence) == ("sdxl", "v_prediction", "low")
    assert any(fact.startswith(f"the file's name says {name}") for fact in found.evidence)
    assert detect(Outline(header=stored("sdxl-unet"), file_name="improved.safetensors")).prediction_type is None


def test_a_file_name_is_a_hint_and_decides_no_architecture():
    found = detect_header(stored("sdxl"), "dreamshaperXL_lightningDPMSDE.safetensors")
    assert (found.variant, found.confidence) == (None, "high"), "a word inside another is none"
    found = detect_header(stored("sdxl"), "dreamshaper_xl_lightning.safetensors")
    assert (found.variant, found.confidence) == ("lightning", "low")
    assert detect_header(stored("flux1"), "flux1-kontext-dev.safetensors").architecture == "flux1"
    assert detect_header(stored("lora-sd1-text-encoder-only"), "sdxl_style.safetensors").architecture is None


def test_a_repositorys_class_beats_what_is_declared():
    configs = {"model_index.json": {"_class_name": "FluxPipeline"}}
    found = detect(Outline(configs=configs, declared=Declaration(base="black-forest-labs/FLUX.1-Kontext-dev")))
    assert (found.architecture, found.pipeline) == ("flux1", "FluxPipeline")
    configs = {"model_index.json": {"_class_name": "StableDiffusionXLPipeline"}}
    assert detect(Outline(configs=configs, declared=Declaration(tags=("turbo",)))).variant == "turbo"


def test_an_unknown_file_stays_unknown_whatever_is_declared():
    unknown = index({f"layer.{at}.weight": (8, 8) for at in range(300)})
    found = detect(Outline(header=unknown, declared=Declaration(base="SDXL 1.0", kind="Checkpoint")))
    assert (found.kind, found.architecture) == (Kind.UNKNOWN, None)
    assert "the page says SDXL 1.0, which its tensors do not show" in found.evidence


@pytest.mark.parametrize(
    ("base", "why"),
    [
        ("Anima", "modular repository only"),
        ("Kling", "not published"),
        ("ACE Audio", "audio"),
        ("Tripo", "3D objects"),
        *((name, "no released version of diffusers") for name in ("Lens", "Boogu", "MageFlow", "HiDream-O1")),
    ],
)
def test_an_unknown_file_of_a_base_that_nothing_runs_is_refused_by_name(base, why):
    with pytest.raises(UnsupportedModel, match=why) as caught:
        detect(Outline(header=index({"strange.weight": (8, 8)}), declared=Declaration(base=base)))
    assert base in caught.value.message


@pytest.mark.parametrize("name", ["Lens", "Lens-Turbo", "Boogu-0.1", "Mage-Flow", "HiDream-O1-Image"])
def test_a_repository_of_a_model_that_no_diffusers_has_is_refused_by_its_name(name):
    whole = {"config.json": {"architectures": ["SomeModel"], "model_type": "some"}}
    for outline in (Outline(header=index({"strange.weight": (8, 8)})), Outline(configs=whole)):
        with pytest.raises(UnsupportedModel, match=f"{name}, which is in no released version of diffusers"):
            detect(replace(outline, declared=Declaration(name=name)))


def test_a_lens_of_a_photographer_is_no_model():
    assert known_base("someone/lens-flare") is None
    assert known_base("Macro Lens Look") is None


# --- the vocabularies


def test_the_civitai_vocabulary_maps_to_rows_or_says_why_not():
    assert len(CIVITAI_BASES) >= 99
    for name, base in CIVITAI_BASES.items():
        assert base.architecture is None or base.architecture in ROWS, name
        if base.variant and base.architecture:
            assert base.variant in ROWS[base.architecture].variants, name
        assert not (base.architecture and base.refused), name
    assert {"Kling", "Sora 2", "Nano Banana", "OpenAI"} <= HOSTED_ONLY
    assert "SDXL 1.0" not in HOSTED_ONLY
    assert set(CIVITAI_KINDS.values()) <= set(Kind)


@pytest.mark.parametrize("text", ["", " ", "Something New 9", "☃", "x" * 10_000, "../../etc", "None", "\0"])
def test_unknown_bases_are_none_and_never_an_error(text):
    assert known_base(text) is None
    assert declared_base(text) is None
    assert seen("sdxl", base=text, kind=text, pipeline=text, tags=(text,), name=text).architecture == "sdxl"


@pytest.mark.parametrize(
    ("text", "architecture", "variant"),
    [
        ("black-forest-labs/FLUX.1-dev", "flux1", None),
        ("black-forest-labs/FLUX.1-schnell", "flux1-schnell", None),
        ("black-forest-labs/FLUX.1-Krea-dev", "flux1", "krea"),
        ("black-forest-labs/FLUX.2-klein-base-4B", "flux2-klein", "base"),
        ("unsloth/Z-Image-Turbo-GGUF", "z-image", "turbo"),
        ("krea/Krea-2-Turbo", "krea2", "turbo"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", None),
        ("stabilityai/stable-diffusion-xl-refiner-1.0", "sdxl-refiner", None),
        ("OnomaAIResearch/Illustrious-xl-early-release-v0", "sdxl", "illustrious"),
        ("Laxhar/noobai-XL-Vpred-1.0", "sdxl", "noobai"),
        ("purplesmartai/pony-v7-base", "auraflow", "pony"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1", None),
        ("runwayml/stable-diffusion-inpainting", None, None),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "wan-i2v", None),
        ("Wan-AI/Wan2.1-T2V-1.3B", "wan", None),
        ("Lightricks/LTX-2", "ltx2", None),
        ("Lightricks/LTX-Video", "ltx", None),
        ("HiDream-ai/HiDream-I1-Full", "hidream", None),
        ("lodestones/Chroma1-HD", "chroma", None),
        ("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "sana-sprint", None),
        ("meta-llama/Llama-3.1-8B", None, None),
        ("openai/whisper-large", None, None),
    ],
)
def test_hub_ids(text, architecture, variant):
    base = known_base(text)
    assert (base.architecture if base else None, base.variant if base else None) == (architecture, variant)


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("SDXL-Lightning 8 step", "lightning"),
        ("Hyper-SDXL", "hyper"),
        ("my_turbo_mix", "turbo"),
        ("lcm-lora", "lcm"),
        ("turbocharged", None),
        ("hyperrealistic", None),
    ],
)
def test_variants_are_whole_words(text, variant):
    assert variant_in(text) == variant


@pytest.mark.parametrize(
    ("text", "says"), [("x v-pred", True), ("vpred05", True), ("NoobAI-XL-Vpred", True), ("vpredator", False)]
)
def test_v_prediction_is_named(text, says):
    assert says_v_prediction(text) is says
