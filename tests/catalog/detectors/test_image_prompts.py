"""IP-Adapters by their headers: layout, family and image encoder, on files whose names and widths are real."""

from pathlib import Path

import pytest

from tests.catalog.corpus import index, stored
from worker.catalog.call import Model
from worker.catalog.detector import detect_header
from worker.catalog.detectors.image_prompts import ENCODERS, encoder_folders, layout_of, need_of, usual_encoder
from worker.catalog.interface.adapters import adapter_fields
from worker.core.model import ModelSource, ModelSpec, Task
from worker.store.refs import parse_reference

ATTENTION = {"ip_adapter.1.to_k_ip.weight": (320, 768)}
FULL_FACE = {"image_proj.proj.0.weight": (1280, 1280), "image_proj.proj.3.weight": (768,)}
FACE_ID_PLUS = {"image_proj.perceiver_resampler.proj_in.weight": (768, 1280), "image_proj.norm.weight": (768,)}


@pytest.mark.parametrize(
    ("header", "title", "reference"),
    [
        (stored("ip-adapter-sd1"), "plain", "h94/IP-Adapter#models/image_encoder"),
        (stored("ip-adapter-sd1-plus"), "plus", "h94/IP-Adapter#models/image_encoder"),
        (index(ATTENTION | FULL_FACE), "full face", "h94/IP-Adapter#models/image_encoder"),
        (stored("ip-adapter-sdxl"), "plain", "h94/IP-Adapter#sdxl_models/image_encoder"),
        (stored("ip-adapter-kolors"), "plus", "Kwai-Kolors/Kolors-IP-Adapter-Plus#image_encoder"),
        (stored("ip-adapter-flux1"), "plain", "openai/clip-vit-large-patch14"),
        (stored("ip-adapter-flux1-xlabs"), "XLabs", "openai/clip-vit-large-patch14"),
    ],
)
def test_the_projection_tells_the_encoder(header, title, reference):
    layout = layout_of(header)
    assert layout is not None
    assert (layout.title, layout.refused) == (title, None)
    need = need_of(header, layout)
    encoder = usual_encoder(need, detect_header(header).architecture) if need else None
    assert encoder is not None
    assert encoder.reference == reference


@pytest.mark.parametrize("header", [stored("ip-adapter-sd1-face-id"), index(ATTENTION | FACE_ID_PLUS)])
def test_face_id_is_no_lora_and_is_refused_by_name(header):
    seen, layout = detect_header(header), layout_of(header)
    assert (seen.kind, seen.architecture) == ("ip-adapter", "sd1")
    assert layout is not None
    assert "InsightFace" in (layout.refused or "")


def test_no_lora_has_the_layout_of_an_adapter():
    headers = Path(__file__).parents[2] / "headers"
    for path in headers.glob("*lora*.json.gz"):
        assert layout_of(stored(path.name.removesuffix(".json.gz"))) is None, path.name


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda row: row.title)
def test_every_default_encoder_is_a_reference(encoder):
    source = parse_reference(encoder.reference)
    assert source.reference == encoder.reference
    assert source.filename is None  # a folder with its config


def test_an_encoder_lies_beside_its_adapter_first():
    assert encoder_folders("sdxl_models/ip-adapter_sdxl.safetensors")[:2] == (
        "sdxl_models/image_encoder",
        "image_encoder",
    )
    assert encoder_folders("")[0] == "image_encoder"


@pytest.mark.parametrize(
    ("pipeline", "fields"),
    [
        ("StableDiffusionPipeline", {"ip_adapters", "vae"}),
        ("FluxKontextPipeline", {"ip_adapters", "vae"}),
        ("AnimateDiffPipeline", {"ip_adapters", "vae"}),
        ("KolorsPAGPipeline", {"vae"}),  # forgets its images
        ("AltDiffusionPipeline", {"vae"}),  # from before there could be several adapters
        ("PixArtAlphaPipeline", {"vae"}),
        ("WanPipeline", set()),
        ("QwenImagePipeline", set()),
    ],
)
def test_a_class_takes_what_its_signature_says(pipeline, fields):
    spec = ModelSpec(id="x", source=ModelSource(scheme="hf", locator="org/x"), pipeline=pipeline)
    found = {*adapter_fields(Model(spec).call(Task.TEXT_TO_IMAGE))}
    assert found & {"ip_adapters", "vae"} == fields
