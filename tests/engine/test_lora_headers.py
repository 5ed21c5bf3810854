"""LoRA files in real sizes, by their headers: every module of each finds its place in the real model of its family."""

import json
import re
from functools import cache
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers

from tests.catalog.corpus import NAMES, index, stored
from tests.engine.published import PUBLISHED
from worker.catalog.detectors.adapters import detect_lora
from worker.catalog.lora_keys import PREFIXES, read_keys, read_scaling
from worker.engine.adapters.changes import LowRank
from worker.engine.adapters.matching import MatchedLora, match_lora
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
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {"guidance_embeds": True}),
    "hunyuan-video-15": ("HunyuanVideo15Transformer3DModel", {}),
    "hunyuan-image": ("HunyuanImageTransformer2DModel", {}),
    "ltx2": ("LTX2VideoTransformer3DModel", {}),
    "wan-vace": ("WanVACETransformer3DModel", {}),
    "wan-i2v": ("WanTransformer3DModel", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
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
        if family == "hunyuan-video":  # its CLIP comes second
            parts["text_encoder_2"] = clip(768, 12)
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


@cache
def fitted(name: str) -> MatchedLora:
    """A stored file's match with the real model of its family."""
    header = stored(name)
    keys = read_keys({key: shape for key, (_, shape) in header.tensors.items()})
    tensors = {
        key: torch.empty(shape, device="meta") if shape else torch.tensor(1.0)
        for key, (_, shape) in header.tensors.items()
    }
    assert keys.unknown == ()
    return match_lora(model(family_of(name)), keys, tensors, read_scaling(header.metadata))


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("name", HEADERS)
def test_every_module_of_a_real_file_finds_its_place(name):
    matched = fitted(name)
    assert matched.lost == []
    assert matched.matched == matched.total > 0


# Trainers' files, and the converters of diffusers that read them: an answer by somebody else.
CONVERTERS = {
    "lora-ltx2-comfy": "_convert_non_diffusers_ltx2_lora_to_diffusers",
    "lora-wan-i2v-lightx2v": "_convert_non_diffusers_wan_lora_to_diffusers",
    "lora-wan-comfy": "_convert_non_diffusers_wan_lora_to_diffusers",
    "lora-krea2-comfy": "_convert_non_diffusers_krea2_lora_to_diffusers",
    "lora-z-image-kohya": "_convert_non_diffusers_z_image_lora_to_diffusers",
    "lora-qwen-image-kohya": "_convert_non_diffusers_qwen_lora_to_diffusers",
    "lora-hunyuan-video-native": "_convert_hunyuan_video_lora_to_diffusers",
}


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize(("name", "converter"), CONVERTERS.items(), ids=CONVERTERS)
def test_layers_are_placed_where_diffusers_places_them(name, converter):
    tensors = {key: torch.empty(shape, device="meta") for key, (_, shape) in stored(name).tensors.items()}
    tensors |= {key: torch.tensor(1.0) for key in tensors if key.endswith(".alpha")}
    theirs = getattr(diffusers.loaders.lora_conversion_utils, converter)(tensors)
    ends = re.compile(r"^transformer\.(.+)\.lora_[AB]\.weight$")
    places = {match[1] for key in theirs if (match := ends.match(key)) is not None}
    assert {path for _, path, change in fitted(name).changes if isinstance(change, LowRank)} == places


def test_what_only_a_sibling_has_does_not_count_and_anything_else_does():
    """Wan 2.1's image-to-video LoRA on a model that reads no image: 2.2's, or text-to-video."""
    header = stored("lora-wan-i2v-lightx2v")
    shapes = {key: shape for key, (_, shape) in header.tensors.items()}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    matched = match_lora(model("wan"), read_keys(shapes), tensors, read_scaling({}))
    assert len(matched.absent) == len(matched.lost) == 40 * 3 + 2
    assert matched.core_matched == matched.core_total - len(matched.absent)
    assert all(re.search(r"_img\b|^img_emb", name) for name in matched.absent)
    # a block that no Wan has is no variant's, and a model with the layer in other blocks has it
    for stem, where in (("blocks.40.self_attn.q", "wan"), ("blocks.41.cross_attn.k_img", "wan-i2v")):
        pair = {f"diffusion_model.{stem}.lora_{side}.weight": (4, 5120)[:: 1 if side == "A" else -1] for side in "AB"}
        tensors = {key: torch.empty(shape, device="meta") for key, shape in pair.items()}
        matched = match_lora(model(where), read_keys(pair), tensors, read_scaling({}))
        assert (matched.absent, matched.lost) == ([], [f"{stem} (no such module)"])


# module -> its width in the file, and the base that a detector reads off it
TRACES = {
    "denoiser": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 768, "sd1"),
    "text_encoder": ("text_model.encoder.layers.0.self_attn.q_proj", 1024, "sd2"),
    "text_encoder_2": ("text_model.encoder.layers.0.self_attn.q_proj", 1280, "sdxl"),
    "text_encoder_3": ("encoder.block.0.layer.0.SelfAttention.q", 4096, None),
    "text_encoder_4": ("model.layers.0.self_attn.q_proj", 4096, None),
    "clip_l": ("text_model.encoder.layers.0.self_attn.q_proj", 1024, "sd2"),
    "connectors": ("aggregate_embed", 3840, None),
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
    expected = {"denoiser": "unet", "clip_l": "text_encoder"}.get(component, component)
    assert ([place[0] for place in matched.changes], matched.lost) == ([expected], [])


@cache
def every_component() -> SimpleNamespace:
    """A denoiser, encoders of as many widths and LTX-2's connectors in one pipeline, without memory for weights."""
    with torch.device("meta"):
        t5 = transformers.T5Config(d_model=4096, d_ff=64, num_layers=1, num_heads=64)
        encoders = {"text_encoder": clip(1024, 1), "text_encoder_2": clip(1280, 1)}
        encoders["text_encoder_3"] = transformers.T5EncoderModel(t5)
        llama = transformers.LlamaConfig(hidden_size=4096, num_hidden_layers=1, vocab_size=8, intermediate_size=8)
        encoders["text_encoder_4"] = transformers.LlamaForCausalLM(llama)
        encoders["connectors"] = torch.nn.ModuleDict({"text_proj_in": torch.nn.Linear(3840, 3840)})
    return SimpleNamespace(components={"unet": model("sd1").components["unet"], **encoders})


def test_a_file_of_another_family_finds_next_to_nothing():
    header = stored("lora-sdxl-kohya")
    keys = read_keys({key: shape for key, (_, shape) in header.tensors.items()})
    tensors = {key: torch.empty(shape or (1,), device="meta") for key, (_, shape) in header.tensors.items()}
    tensors |= {key: torch.tensor(1.0) for key in tensors if key.endswith(".alpha")}
    for family, share in (("sd1", 0.06), ("flux1", 0.0)):  # some layers are of one size in SD 1 and SDXL
        fitted = match_lora(model(family), keys, tensors, read_scaling({}))
        assert fitted.core_matched <= share * fitted.core_total


def pixart_blocks(width: int = 1152, blocks: int = 28) -> dict[str, tuple[int, int]]:
    """The matrices of PixArt-alpha's own code that trainers train, by name."""
    whole = {"t_block.1": (6 * width, width), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width)}
    whole |= {"y_embedder.y_proj.fc1": (width, 4096), "y_embedder.y_proj.fc2": (width, width)}
    whole |= {
        f"{name}.mlp.{at}": (384, (256, 384)[at // 2]) for name in ("csize_embedder", "ar_embedder") for at in (0, 2)
    }
    for at in range(blocks):
        whole |= {
            f"blocks.{at}.attn.qkv": (3 * width, width),
            f"blocks.{at}.attn.proj": (width, width),
            f"blocks.{at}.cross_attn.q_linear": (width, width),
            f"blocks.{at}.cross_attn.kv_linear": (2 * width, width),
            f"blocks.{at}.cross_attn.proj": (width, width),
            f"blocks.{at}.mlp.fc1": (4 * width, width),
            f"blocks.{at}.mlp.fc2": (width, 4 * width),
        }
    return whole


def native_matrices(family: str) -> tuple[torch.nn.Module, dict[str, tuple[int, int]]]:
    """A family's denoiser in its published size, and its matrices by its authors' names."""
    published = next(one for one in PUBLISHED if one.family == family and (one.original or family == "pixart-alpha"))
    with torch.device("meta"):
        denoiser = getattr(diffusers, published.model).from_config(dict(published.config))
    if published.original is None:
        return denoiser, pixart_blocks()
    shapes = published.original({name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()})
    return denoiser, {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and "motion_synthesis" not in name and ".direction" not in name
    }


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("family", ["mochi", "pixart-alpha", "wan-animate"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_a_lora_in_its_authors_names_finds_every_layer(family, prefix):
    denoiser, matrices = native_matrices(family)
    assert len(matrices) > 150
    pairs = {}
    for name, (rows, columns) in matrices.items():
        stem = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        pairs |= {f"{stem}.lora_down.weight": (4, columns), f"{stem}.lora_up.weight": (rows, 4)}
    keys = read_keys(pairs)
    assert keys.unknown == ()
    tensors = {key: torch.empty(shape, device="meta") for key, shape in pairs.items()}
    matched = match_lora(SimpleNamespace(components={"transformer": denoiser}), keys, tensors, read_scaling({}))
    assert (matched.lost, matched.matched) == ([], len(matrices))


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
