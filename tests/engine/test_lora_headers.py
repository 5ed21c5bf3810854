"""LoRA files in real sizes, by their headers: every module of each finds its place in the real model of its family."""

import json
from functools import cache
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers

from tests.catalog.corpus import NAMES, index, stored
from worker.catalog.detectors.adapters import detect_lora
from worker.catalog.lora_keys import PREFIXES, read_keys, read_scaling
from worker.engine.adapters.matching import match_lora
from worker.service.local.completing import CONFIGS

FAMILIES = {
    "sd1": ("unet", "sd1"), "sd2": ("unet", "sd2"), "sdxl": ("unet", "sdxl"),
    "flux1": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2-klein": (
        "Flux2Transformer2DModel",
        {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
    ),
    "flux2": ("Flux2Transformer2DModel", {}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "sd3": ("SD3Transformer2DModel", {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
    "wan": ("WanTransformer3DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {}),
    "krea2": ("Krea2Transformer2DModel", {}),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {}),
}  # fmt: skip


def family_of(name: str) -> str | None:
    """The family in a header's name: `lora-flux2-klein-comfy` is flux2-klein."""
    rest = name.partition("-")[2]
    return next((f for f in sorted(FAMILIES, key=len, reverse=True) if rest == f or rest.startswith(f"{f}-")), None)


# Others are computed from the model's own weights, which are not there; a control LoRA is refused by its name.
HEADERS = [
    name
    for name in NAMES
    if name.startswith(("lora-", "loha-", "lokr-"))
    and family_of(name)
    and not name.endswith(("-control", "-undecidable"))
]


@cache
def model(family: str) -> SimpleNamespace:
    """The components of a family in their published sizes, without memory for weights."""
    kind, config = FAMILIES[family]
    with torch.device("meta"):
        if kind == "unet":
            settings = json.loads((CONFIGS / str(config) / "unet" / "config.json").read_text())
            parts = {"unet": diffusers.UNet2DConditionModel.from_config(settings), "text_encoder": clip(768, 12)}
            if family == "sdxl":
                parts["text_encoder_2"] = clip(1280, 32)
        else:
            parts = {"transformer": getattr(diffusers, kind)(**config)}
        if family == "flux1":
            t5 = transformers.T5Config(
                d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
            )
            parts |= {"text_encoder": clip(768, 12), "text_encoder_2": transformers.T5EncoderModel(t5)}
    return SimpleNamespace(components=parts)


def clip(width: int, layers: int) -> torch.nn.Module:
    """CLIP's text encoder."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, num_attention_heads=width // 64))


@pytest.mark.parametrize("name", HEADERS)
def test_every_module_of_a_real_file_finds_its_place(name):
    header = stored(name)
    keys = read_keys({key: shape for key, (_, shape) in header.tensors.items()})
    tensors = {
        key: torch.empty(shape, device="meta") if shape else torch.tensor(1.0)
        for key, (_, shape) in header.tensors.items()
    }
    fitted = match_lora(model(family_of(name)), keys, tensors, read_scaling(header.metadata))
    assert fitted.lost == []
    assert fitted.matched == fitted.total > 0
    assert keys.unknown == ()


# module -> its width in the file, and the base that a detector reads off it
TRACES = {
    "denoiser": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 768, "sd1"),
    "text_encoder": ("text_model.encoder.layers.0.self_attn.q_proj", 1024, "sd2"),
    "text_encoder_2": ("text_model.encoder.layers.0.self_attn.q_proj", 1280, "sdxl"),
    "text_encoder_3": ("encoder.block.0.layer.0.SelfAttention.q", 4096, None),
}


@pytest.mark.parametrize(("prefix", "component", "dialect"), PREFIXES, ids=[row[0] for row in PREFIXES])
def test_detector_and_engine_agree_on_every_prefix(prefix, component, dialect):
    path, width, base = TRACES[component]
    rows = 320 if component == "denoiser" else width
    name = path.removeprefix("text_model.") if prefix.endswith(("text_model.", "text_model_")) else path
    stem = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
    shapes = {f"{stem}.lora_down.weight": (4, width), f"{stem}.lora_up.weight": (rows, 4)}
    lora = detect_lora(index(shapes))
    assert lora is not None
    assert (lora.base, lora.dialect) == (base, dialect)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    matched = match_lora(every_component(), read_keys(shapes), tensors, read_scaling({}))
    expected = "unet" if component == "denoiser" else component
    assert ([place[0] for place in matched.changes], matched.lost) == ([expected], [])


@cache
def every_component() -> SimpleNamespace:
    """A denoiser and three encoders of as many widths in one pipeline, without memory for weights."""
    with torch.device("meta"):
        t5 = transformers.T5Config(d_model=4096, d_ff=64, num_layers=1, num_heads=64)
        encoders = {"text_encoder": clip(1024, 1), "text_encoder_2": clip(1280, 1)}
        encoders["text_encoder_3"] = transformers.T5EncoderModel(t5)
    return SimpleNamespace(components={"unet": model("sd1").components["unet"], **encoders})


def test_a_file_of_another_family_finds_next_to_nothing():
    header = stored("lora-sdxl-kohya")
    keys = read_keys({key: shape for key, (_, shape) in header.tensors.items()})
    tensors = {key: torch.empty(shape or (1,), device="meta") for key, (_, shape) in header.tensors.items()}
    tensors |= {key: torch.tensor(1.0) for key in tensors if key.endswith(".alpha")}
    for family, share in (("sd1", 0.06), ("flux1", 0.0)):  # some layers are of one size in SD 1 and SDXL
        fitted = match_lora(model(family), keys, tensors, read_scaling({}))
        assert fitted.core_matched <= share * fitted.core_total


@pytest.mark.parametrize(
    ("name", "family"), [("flux1", "flux1"), ("sd3", "sd3"), ("sdxl-unet", "sdxl"), ("sd1", "sd1")]
)
def test_every_layer_of_an_original_checkpoint_has_a_name(name, family):
    """What a trainer of the original code can reach, a file of it can name."""
    from worker.engine.adapters.targets import Targets

    part = next(iter(model(family).components.values()))
    places = Targets(part)
    missing, wrong = [], []
    for key, (_, shape) in stored(name).tensors.items():
        stem = key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        if not key.endswith(".weight") or key.startswith(
            ("first_stage", "cond_stage", "conditioner", "text_encoders", "vae.")
        ):
            continue
        targets = places.find(stem)
        if not targets:
            missing.append(stem)
        elif sum(target.rows for target in targets) != shape[0]:
            wrong.append((stem, shape, targets))
    assert (missing, wrong) == ([], [])
