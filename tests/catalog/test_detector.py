from dataclasses import replace

import pytest

from tests.catalog.corpus import NAMES, index, sparse_file, stored
from tests.catalog.expected import EXPECTED, READERS, REFUSED
from tests.counting import Count, bytes_read
from worker.catalog.capabilities import check_loadable
from worker.catalog.detector import detect_header
from worker.catalog.formats.headers import read_header
from worker.core.errors import UnsupportedModel
from worker.core.model import Kind, Task


def test_every_stored_header_has_an_expectation():
    assert set(NAMES) == set(EXPECTED) | set(REFUSED)
    assert not set(EXPECTED) & set(REFUSED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stored_header_is_recognised(name):
    found = detect_header(stored(name))
    assert (found.kind, found.architecture) == EXPECTED[name]
    assert found.evidence
    assert all(len(fact) < 200 for fact in found.evidence)


def test_an_sdxl_file_answers_with_evidence_and_without_its_weights(tmp_path):
    path = sparse_file(tmp_path / "sdxl.safetensors", stored("sdxl"))
    detect_header(stored("sdxl"))  # reads the tables
    before = bytes_read()
    with Count() as count:
        found = detect_header(read_header(path), path.name)
    assert bytes_read() - before < 1_000_000, "of 6.9 GB"
    assert count.calls < 80 * 2515, "for each tensor, read and recognised"
    assert (found.kind, found.architecture, found.pipeline) == (Kind.CHECKPOINT, "sdxl", "StableDiffusionXLPipeline")
    assert found.tasks == (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)
    assert found.native_size == 1024
    stem = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    assert f"{stem} is (640, 2048): sdxl" in found.evidence
    assert "metadata modelspec.architecture is stable-diffusion-xl-v1-base" in found.evidence


@pytest.mark.parametrize(
    ("name", "pipeline", "task"),
    [
        ("sd1-inpaint", "StableDiffusionInpaintPipeline", Task.INPAINTING),
        ("sdxl-inpaint", "StableDiffusionXLInpaintPipeline", Task.INPAINTING),
        ("sd1-pix2pix", "StableDiffusionInstructPix2PixPipeline", Task.IMAGE_EDITING),
        ("sd2-depth", "StableDiffusionDepth2ImgPipeline", Task.IMAGE_TO_IMAGE),
        ("flux1-fill", "FluxFillPipeline", Task.INPAINTING),
        ("sdxl-refiner", "StableDiffusionXLImg2ImgPipeline", Task.IMAGE_TO_IMAGE),
    ],
)
def test_input_channels_choose_the_pipeline(name, pipeline, task):
    found = detect_header(stored(name))
    assert (found.pipeline, found.tasks) == (pipeline, (task,))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("sdxl", None), ("sdxl-v-prediction", "v_prediction"), ("sdxl-playground", "edm"), ("sd2", None)],
)
def test_prediction_markers(name, prediction):
    assert detect_header(stored(name)).prediction_type == prediction


def test_zero_terminal_snr_is_told():
    assert "has ztsnr" in detect_header(stored("sdxl-v-prediction")).evidence


@pytest.mark.parametrize(("text", "wanted"), [("v", "v_prediction"), ("epsilon", "epsilon"), ("nonsense", None)])
def test_metadata_declares_the_prediction(text, wanted):
    source = replace(stored("sd2"), metadata={"modelspec.prediction_type": text})
    assert detect_header(source).prediction_type == wanted


@pytest.mark.parametrize("name", READERS)
def test_a_part_says_which_one_it_is_and_what_reads_it(name):
    found = detect_header(stored(name))
    assert (found.component_class, found.variant) == READERS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_nothing_here_can_run_is_refused_by_name(name):
    with pytest.raises(UnsupportedModel) as caught:
        detect_header(stored(name))
    assert REFUSED[name] in caught.value.message


@pytest.mark.parametrize(
    ("name", "format", "quantization"),
    [
        ("sdxl", "safetensors", None),
        ("sdxl-fp8", "safetensors", "fp8"),
        ("flux1-fp8-scaled", "safetensors", "fp8-scaled"),
        ("flux1-nf4", "safetensors", "nf4"),
        ("flux1-nf4-packed", "safetensors", "nf4"),
        ("flux1-svdquant", "safetensors", "svdquant"),
        ("flux1-gguf", "gguf", "gguf"),
        ("z-image-gguf", "gguf", "gguf"),
        ("t5-xxl-gguf", "gguf", "gguf"),
        ("hypernetwork-sd1", "torch", None),
        ("dora-sdxl-kohya", "dora/kohya", None),
    ],
)
def test_the_container_and_what_a_plain_reading_would_spoil(name, format, quantization):
    found = detect_header(stored(name))
    assert (found.format, found.quantization) == (format, quantization)


GGUF = stored("flux1-gguf")


@pytest.mark.parametrize("blocks", ["IQ2_XXS", "IQ3_S", "TQ1_0", "MXFP4"])
def test_gguf_of_blocks_that_nothing_unpacks_is_told_and_refused_by_their_name(blocks):
    packed = {name: (blocks if dtype == "Q4_K" else dtype, shape) for name, (dtype, shape) in GGUF.tensors.items()}
    found = detect_header(replace(GGUF, tensors=packed))
    assert (found.architecture, found.quantization) == ("flux1", blocks)
    with pytest.raises(UnsupportedModel, match=f"quantized as {blocks}, which no loader here reads"):
        check_loadable("m", found)


@pytest.mark.parametrize(
    ("metadata", "quantization"),
    [
        ({}, "int8"),
        ({"_quantization_metadata": '{"layers": {"x": {"format": "int8_tensorwise"}}}'}, "int8"),
        ({"_quantization_metadata": '{"layers": {"x": {"convrot": true, "convrot_groupsize": 256}}}'}, "int8-convrot"),
    ],
)
def test_comfyuis_int8_is_told_from_its_scaled_fp8(metadata, quantization):
    tensors = {
        name: ("I8" if dtype == "F8_E4M3" else dtype, shape)
        for name, (dtype, shape) in stored("flux1-fp8-scaled").tensors.items()
    }
    tensors["model.diffusion_model.img_in.weight_scale"] = ("F32", (3072, 1))
    found = detect_header(replace(stored("flux1-fp8-scaled"), tensors=tensors, metadata=metadata))
    assert (found.architecture, found.quantization) == ("flux1", quantization)
    with pytest.raises(UnsupportedModel, match="ComfyUI's int8"):
        check_loadable("m", found)


def with_tensors(name, *, without=(), renamed=(), **shapes):
    """A stored header without the names that start with one of `without`, renamed, and with further tensors."""
    header = stored(name)
    kept = {key: entry for key, entry in header.tensors.items() if not key.startswith(tuple(without))}
    for old, new in renamed:
        kept = {key.replace(old, new): entry for key, entry in kept.items()}
    return replace(header, tensors=kept | {key.replace("__", "."): ("F16", shape) for key, shape in shapes.items()})


LABELS = "model__diffusion_model__label_emb__0__0__weight"
SPECIAL = {
    "unCLIP": (
        with_tensors("sd2", **{LABELS: (1280, 2048), "noise_augmentor__data_mean": (1, 1024)}),
        "Stable unCLIP",
    ),
    "unCLIP's UNet alone": (
        with_tensors("sd2", without=("first_stage", "cond_stage"), **{LABELS: (1280, 1536)}),
        "Stable unCLIP",
    ),
    "unCLIP's UNet by diffusers' names": (
        with_tensors("sd1-unet-diffusers", class_embedding__linear_1__weight=(1280, 2048)),
        "Stable unCLIP",
    ),
    "Zero123": (with_tensors("sd1-pix2pix", cc_projection__weight=(768, 772)), "Zero123"),
    "variations": (
        with_tensors("sd1", without=("cond_stage_model",), cond_stage_model__model__visual__proj=(1024, 768)),
        "Image Variations",
    ),
    "EMA alone": (with_tensors("sd1", renamed=[("model.diffusion_model.", "model_ema.diffusion_model")]), "EMA"),
    "hint": (index({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}), "first layers of a ControlNet"),
    "LLLite": (
        index({"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.down.0.weight": (32, 640)}),
        "ControlNet-LLLite",
    ),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_a_model_with_conditioning_of_its_own_is_no_plain_one(case):
    header, title = SPECIAL[case]
    with pytest.raises(UnsupportedModel, match=f"This is .*{title}"):
        detect_header(header)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sd1", ("denoiser", "vae", "text_encoder")),
        ("sd1-no-vae", ("denoiser", "text_encoder")),
        ("sdxl", ("denoiser", "vae", "text_encoder", "text_encoder_2")),
        ("sd3", ("denoiser", "vae", "text_encoder", "text_encoder_2")),
        ("flux1", ("denoiser",)),
        ("flux1-all-in-one", ("denoiser", "vae", "text_encoder")),
        ("vae-16", ("vae",)),
        ("t5-xxl", ("text_encoder",)),
    ],
)
def test_a_file_says_which_parts_it_holds(name, parts):
    assert detect_header(stored(name)).parts == parts


def test_t5_is_the_second_or_the_third_text_encoder():
    t5 = {"text_encoders.t5xxl.transformer.shared.weight": ("F16", (32128, 4096))}
    flux, sd3 = stored("flux1-all-in-one"), stored("sd3")
    found = detect_header(replace(flux, tensors={**flux.tensors, **t5}))
    assert found.parts == ("denoiser", "vae", "text_encoder", "text_encoder_2")
    found = detect_header(replace(sd3, tensors={**sd3.tensors, **t5}))
    assert found.parts[-2:] == ("text_encoder_2", "text_encoder_3")


def test_missing_parts_are_told():
    assert "no VAE in the file" in detect_header(stored("sd1-no-vae")).evidence
    assert not any(fact.startswith("no ") for fact in detect_header(stored("sd1")).evidence)


def test_metadata_that_contradicts_the_tensors_is_told_and_loses():
    found = detect_header(replace(stored("sd1"), metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"}))
    assert found.architecture == "sd1"
    wanted = "metadata modelspec.architecture says stable-diffusion-xl-v1-base, which the tensors contradict"
    assert wanted in found.evidence


def test_unknown_is_an_answer_with_what_is_near():
    small = {"input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 32)}
    small |= {"output_blocks.0.0.in_layers.0.weight": (32,), "first.weight": (3,)}
    tiny = {f"model.diffusion_model.{name}": shape for name, shape in small.items()}
    tiny |= {"first_stage_model.decoder.conv_in.weight": (32, 4, 3, 3), "cond_stage_model.x": (1,)}
    found = detect_header(index(tiny))
    assert (found.kind, found.architecture, found.pipeline) == (Kind.UNKNOWN, None, None)
    assert "sd1" in found.near
    assert len(found.near) <= 3


def test_strange_files_are_unknown_and_never_sd1():
    for tensors in ({"x": (1,)}, {"weight": ()}, {"a.lora": (3,)}, {f"layer.{i}.weight": (8, 8) for i in range(300)}):
        found = detect_header(index(tensors))
        assert (found.kind, found.architecture) == (Kind.UNKNOWN, None)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1, 1, 1, 1)])
def test_names_with_absurd_shapes_never_break_the_answer(shape):
    for name in NAMES:
        source = stored(name)
        strange = replace(source, tensors=dict.fromkeys(list(source.tensors)[:200], ("U8", shape)))
        try:
            found = detect_header(strange, "x" * 300)
        except UnsupportedModel:
            continue
        assert found.evidence or found.near
        assert all(len(fact) < 250 for fact in found.evidence)
    assert detect_header(index({})).kind is Kind.UNKNOWN
