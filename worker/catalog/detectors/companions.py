"""The table of files that complete a model, or belong to another program: one row per kind of file and base.

First match wins; a test asserts that each stored header matches the rows of one kind only. ControlNets stand in
`controlnets.py`, autoencoders and text encoders in `encoders.py`, LoRAs in `adapters.py`.
"""

import re
from dataclasses import dataclass

from worker.catalog.conditions import Condition, all_of, any_of, dimension, has_all, has_any, has_prefix, none_of, under
from worker.core.embedding import embedding_tensors, is_embedding_name
from worker.core.model import Kind, TensorIndex


@dataclass(frozen=True, slots=True)
class Companion:
    """One kind of file. `what` is its name in the evidence; `architecture` is the base it belongs to."""

    kind: Kind
    what: str
    condition: Condition
    architecture: str | None = None
    component_class: str | None = None  # the diffusers or transformers class that reads it
    variant: str | None = None  # which one of its kind


_IP = any_of(
    has_any("image_proj.proj.weight", "image_proj.latents", "image_proj.norm.weight", "image_proj.proj.0.weight"),
    has_any("image_proj.proj.3.weight", "image_proj.0.weight", "ip_adapter.1.to_k_ip.weight"),
    has_any("image_proj.perceiver_resampler.proj_in.weight"),
)
_T2I_ORIGINAL = has_any("adapter.body.0.in_conv.weight", "body.0.in_conv.weight", "body.0.block1.weight")
_T2I_DIFFUSERS = has_any("adapter.body.0.resnets.0.block1.weight", "adapter.body.0.in_conv.weight")
_T2I = any_of(_T2I_ORIGINAL, _T2I_DIFFUSERS)
_MOTION = all_of(
    has_any(
        "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", "down_blocks.0.motion_modules.0.norm.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.norms.0.weight",
    ),
    none_of(has_any("down_blocks.0.resnets.0.conv1.weight")),  # a whole UNet with motion in it
)  # fmt: skip
_SIGLIP = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
_VISION = has_any(
    _SIGLIP, "visual.transformer.resblocks.0.attn.in_proj_weight", "encoder.layer.0.attention.attention.query.weight",
)  # fmt: skip
_TEXT_TOO = has_any(
    "text_model.encoder.layers.0.self_attn.q_proj.weight", "transformer.resblocks.0.attn.in_proj_weight"
)


def _ip(base: str, width: int, *conditions: Condition) -> Companion:
    keys = any_of(*(dimension(f"ip_adapter.{block}.to_k_ip.weight", 1, width) for block in (0, 1)))
    return Companion(
        Kind.IP_ADAPTER, f"an IP-Adapter for {width}-channel attention", all_of(_IP, keys, *conditions), base
    )


def _motion(base: str, title: str) -> Companion:
    prefix = "down_blocks.0.motion_modules.0."
    keys = any_of(
        dimension(f"{prefix}temporal_transformer.norm.weight", 0, 320), dimension(f"{prefix}norm.weight", 0, 320)
    )
    fourth_level = has_prefix("down_blocks.3.motion_modules.")
    depth = fourth_level if base == "sd1" else none_of(fourth_level)
    return Companion(
        Kind.MOTION_MODULE,
        f"an AnimateDiff motion module for {title}",
        all_of(_MOTION, keys, depth),
        base,
        "MotionAdapter",
    )


def _encoder(variant: str, width: int, condition: Condition) -> Companion:
    layer = any_of(
        dimension(_SIGLIP, 0, width), dimension("visual.transformer.resblocks.0.attn.in_proj_weight", 1, width)
    )
    name = "SiglipVisionModel" if variant.startswith("siglip") else "CLIPVisionModelWithProjection"
    return Companion(Kind.IMAGE_ENCODER, f"the image encoder {variant}", all_of(layer, condition), None, name, variant)


def _upscaler(variant: str, condition: Condition) -> Companion:
    return Companion(Kind.UPSCALER, f"an upscaler of the kind {variant}", condition, None, None, variant)


FACE_RESTORER = "face restorer"
_SAVED = ("", "params_ema.", "params.")
_ESRGAN_TRUNKS = under(_SAVED, has_all("conv_first.weight", "body.0.rdb1.conv1.weight"))
_CLASS_EMBEDDING = has_any("vision_model.embeddings.class_embedding", "visual.class_embedding")

COMPANIONS: tuple[Companion, ...] = (
    _ip("sd1", 768),
    _ip("sd2", 1024),
    # Kolors' attention is as wide as SDXL's; its adapters read another encoder's patches.
    _ip("kolors", 2048, dimension("image_proj.proj_in.weight", 1, 1024)),
    _ip("sdxl", 2048),
    _ip("flux1", 4096),
    Companion(
        Kind.IP_ADAPTER, "an IP-Adapter for FLUX.1 (XLabs)",
        has_any(
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "ip_adapter_proj_model.proj.weight"
        ),
        "flux1",
    ),
    Companion(
        Kind.IP_ADAPTER, "an IP-Adapter for Stable Diffusion 3",
        any_of(has_any("ip_adapter.0.norm_ip.linear.weight"), dimension("ip_adapter.0.to_k_ip.weight", 1, 1536, 2432)),
        "sd3",
    ),
    Companion(Kind.IP_ADAPTER, "an IP-Adapter whose base does not show", _IP),
    Companion(
        Kind.T2I_ADAPTER, "a T2I-Adapter for SDXL",
        all_of(_T2I, any_of(
            dimension("adapter.conv_in.weight", 1, 768), dimension("conv_in.weight", 1, 768, 256),
            dimension("adapter.conv_in.weight", 1, 256),
        )), "sdxl", "T2IAdapter",
    ),
    Companion(
        Kind.T2I_ADAPTER, "a T2I-Adapter for Stable Diffusion 1.x",
        all_of(_T2I, any_of(
            dimension("adapter.conv_in.weight", 1, 64, 192), dimension("conv_in.weight", 1, 64, 192),
            dimension("adapter.body.0.in_conv.weight", 1, 64, 192), dimension("body.0.in_conv.weight", 1, 64, 192),
        )), "sd1", "T2IAdapter",
    ),
    Companion(Kind.T2I_ADAPTER, "a T2I-Adapter whose base does not show", _T2I, None, "T2IAdapter"),
    _motion("sd1", "Stable Diffusion 1.x"),
    _motion("sdxl", "SDXL"),
    Companion(Kind.MOTION_MODULE, "an AnimateDiff motion module", _MOTION, None, "MotionAdapter"),
    Companion(
        Kind.IMAGE_ENCODER, "FLUX.1 Redux, which turns an image into FLUX.1's prompt",
        has_all("redux_up.weight", "redux_down.weight"), "flux1", "ReduxImageEncoder", "redux",
    ),
    _encoder("clip-vit-h", 1280, all_of(_CLASS_EMBEDDING, none_of(_TEXT_TOO))),
    _encoder("clip-vit-g", 1664, all_of(_CLASS_EMBEDDING, none_of(_TEXT_TOO))),
    _encoder("clip-vit-l", 1024, all_of(_CLASS_EMBEDDING, none_of(_TEXT_TOO))),
    _encoder("siglip-so400m", 1152, none_of(_CLASS_EMBEDDING, _TEXT_TOO)),
    Companion(Kind.IMAGE_ENCODER, "an image encoder", all_of(_VISION, none_of(_TEXT_TOO))),
    _upscaler("ESRGAN", any_of(
        _ESRGAN_TRUNKS, has_all("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
        under(_SAVED, has_all("body.0.weight", "body.1.weight", "body.2.weight")),
    )),
    _upscaler("SwinIR or HAT", under(_SAVED, any_of(
        has_all("layers.0.residual_group.blocks.0.attn.relative_position_bias_table", "conv_first.weight"),
        has_all("layers.0.residual_group.blocks.0.attn.qkv.weight", "conv_first.weight"),
    ))),
    _upscaler("DAT", under(_SAVED, has_all("layers.0.blocks.0.attn.qkv.weight", "before_RG.1.weight"))),
    _upscaler("SPAN", under(_SAVED, has_any("block_1.c1_r.sk.weight"))),
    Companion(
        Kind.UPSCALER, "a face restorer (GFPGAN or CodeFormer)",
        under(("", "params_ema."), has_any("stylegan_decoder.style_mlp.1.weight", "quantize.embedding.weight")),
        None, None, FACE_RESTORER,
    ),
)  # fmt: skip

_MOST_VECTORS = 128
_EMBEDDING_FILES = "learned_embeds"  # as diffusers' training script calls them
# The family that a single set of vectors of this width was made for.
_EMBEDDING_WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl", 4096: "flux1"}
# The sets that only one family's encoders read.
_EMBEDDING_SETS = (
    ({"clip_l", "clip_g", "t5"}, "sd3"), ({"clip_l", "clip_g"}, "sdxl"), ({"clip_l", "t5"}, "flux1"),
)  # fmt: skip
_SD1_WIDTHS = {"320", "640", "768", "1280"}
_HYPERNETWORK = re.compile(r"(\d+)\.[01]\.linear(?:[12]|\.\d+)\.(?:weight|bias)")


def find_companion(index: TensorIndex, name: str = "") -> tuple[Companion, tuple[str, ...]] | None:
    """Return the row that the file of that name matches, with the evidence; None when it is none of these kinds."""
    for row in COMPANIONS:
        facts = row.condition.match(index)
        if facts is not None:
            return row, (f"{facts[0] if facts else 'its tensors'}: {row.what}", *facts[1:3])
    return _hypernetwork(index) or _embedding(index, name)


def _hypernetwork(index: TensorIndex) -> tuple[Companion, tuple[str, ...]] | None:
    """Detect a hypernetwork of A1111: pairs of small networks below the width of the attention that they change."""
    if not index.tensors or not all(map(_HYPERNETWORK.fullmatch, index.tensors)):
        return None
    widths = {name.partition(".")[0] for name in index.tensors}
    base = "sd2" if "1024" in widths else "sd1" if widths & _SD1_WIDTHS else None
    row = Companion(Kind.HYPERNETWORK, "a hypernetwork", has_all(), base)
    return row, (f"{next(iter(index.tensors))[:60]}: a hypernetwork",)


def _embedding(index: TensorIndex, file_name: str) -> tuple[Companion, tuple[str, ...]] | None:
    """Detect a textual inversion: a few vectors as wide as their text encoder, or such a set for each of several."""
    shapes = {name: shape for name, (_, shape) in index.tensors.items()}
    tensors = embedding_tensors(shapes)
    if not tensors:
        return None
    parts = {part for part, _ in tensors}
    name = tensors[0][1]
    shape = shapes[name]
    base = next((family for required, family in _EMBEDDING_SETS if required <= parts), None)
    if base is not None:
        row = Companion(Kind.TEXTUAL_INVERSION, "token vectors for several encoders", has_all(), base, None, "pair")
        return row, (f"has {' and '.join(sorted(parts))}: token vectors for several text encoders",)
    base = _EMBEDDING_WIDTHS.get(shape[-1])
    is_named = is_embedding_name(name) or file_name.startswith(_EMBEDDING_FILES)
    if not is_named and (base is None or (len(shape) == 2 and shape[0] > _MOST_VECTORS)):
        return None  # one matrix, and nothing that says it is a handful of tokens
    row = Companion(Kind.TEXTUAL_INVERSION, "token vectors", has_all(), base)
    return row, (f"{name[:60]} is {shape}: token vectors",)
