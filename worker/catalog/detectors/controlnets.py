"""The table of ControlNets: one row per family. A ControlNet is its base's way down plus a way in for an image."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.catalog.conditions import Condition, all_of, any_of, dimension, has_all, has_any, none_of, under
from worker.core.model import TensorIndex


@dataclass(frozen=True, slots=True)
class ControlNet:
    """One family of ControlNets. `component_class` reads its file; None where diffusers has no class for the layout."""

    what: str
    condition: Condition
    architecture: str | None
    component_class: str | None
    variant: str | None = None  # "union" follows images of several kinds, "inpainting" takes image and mask too


CONTROL_LORA = "control-lora"
"""The variant of a ControlNet whose file holds only its additions to the base's UNet."""

_PREFIXES = ("", "control_model.", "controlnet.", "lora_controlnet.", "model.diffusion_model.", "diffusion_model.")
_UNET = any_of(
    has_any("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight", "lora_controlnet"),
    has_all("zero_convs.0.0.weight", "time_embed.0.weight"),
)
_UNION = has_any("control_add_embedding.linear_1.weight", "task_embedding", "control_type_proj.weight")
_ATTENTION = (
    "input_blocks.{}.1.transformer_blocks.0.attn2.to_k",
    "down_blocks.{}.attentions.0.transformer_blocks.0.attn2.to_k",
)
_DIT = has_any("controlnet_blocks.0.weight")


def _context(width: int) -> Condition:
    """Condition that text of `width` channels enters level 0 or 1; in a control LoRA `down` reads it."""
    modules = [
        *(_ATTENTION[0].format(block) for block in (1, 2, 4)),
        *(_ATTENTION[1].format(block) for block in (0, 1)),
    ]
    return any_of(*(dimension(f"{module}.{leaf}", 1, width) for leaf in ("weight", "down") for module in modules))


def _unet(title: str, base: str, width: int) -> ControlNet:
    condition = all_of(_UNET, _context(width), none_of(_UNION, has_any("control_to_base_for_conv_in.weight")))
    return ControlNet(f"a ControlNet for {title}", under(_PREFIXES, condition), base, "ControlNetModel")


CONTROLNETS: tuple[ControlNet, ...] = (
    ControlNet(
        "a ControlNet Union ProMax for SDXL", all_of(_UNET, _UNION, dimension("task_embedding", 0, 8)), "sdxl",
        "ControlNetUnionModel", "union-promax",
    ),
    ControlNet("a ControlNet Union for SDXL", all_of(_UNET, _UNION), "sdxl", "ControlNetUnionModel", "union"),
    _unet("Stable Diffusion 1.x", "sd1", 768),
    _unet("Stable Diffusion 2.x", "sd2", 1024),
    _unet("SDXL", "sdxl", 2048),
    ControlNet(
        "a ControlNet for SDXL without attention",
        all_of(
            has_any("controlnet_cond_embedding.conv_in.weight"), has_any("add_embedding.linear_1.weight"),
            none_of(_UNION, _context(2048)),
        ), "sdxl", "ControlNetModel",
    ),
    ControlNet("a ControlNet-XS", has_any("control_to_base_for_conv_in.weight"), None, "ControlNetXSAdapter", "xs"),
    ControlNet(
        "a sparse ControlNet for AnimateDiff",
        has_all("down_blocks.0.motion_modules.0.proj_in.weight", "controlnet_mid_block.weight"), "sd1",
        "SparseControlNetModel", "sparse",
    ),
    ControlNet(
        "a ControlNet Union for FLUX.1", all_of(_DIT, has_any("controlnet_mode_embedder.weight")), "flux1",
        "FluxControlNetModel", "union",
    ),
    ControlNet(
        "a ControlNet for FLUX.1", all_of(_DIT, dimension("controlnet_x_embedder.weight", 0, 3072),
            dimension("context_embedder.weight", 1, 4096)), "flux1", "FluxControlNetModel",
    ),
    ControlNet(
        "a ControlNet for FLUX.1 (XLabs)", has_all("input_hint_block.0.weight", "pos_embed_input.weight"), "flux1",
        None, "xlabs",
    ),
    ControlNet(
        "an inpainting ControlNet for Qwen-Image",
        all_of(_DIT, dimension("controlnet_x_embedder.weight", 1, 68), dimension("txt_in.weight", 1, 3584)),
        "qwen-image", "QwenImageControlNetModel", "inpainting",
    ),
    ControlNet(
        "a ControlNet for Qwen-Image",
        all_of(_DIT, has_any("controlnet_x_embedder.weight"), dimension("txt_in.weight", 1, 3584)), "qwen-image",
        "QwenImageControlNetModel",
    ),
    ControlNet(
        "an inpainting ControlNet for Stable Diffusion 3",
        all_of(_DIT, dimension("pos_embed_input.proj.weight", 1, 17)), "sd3", "SD3ControlNetModel", "inpainting",
    ),
    ControlNet(
        "a ControlNet for Stable Diffusion 3", all_of(_DIT, has_any("pos_embed_input.proj.weight")), "sd3",
        "SD3ControlNetModel",
    ),
    ControlNet(
        "a ControlNet for Hunyuan-DiT", all_of(_DIT, has_any("text_embedding_padding")), "hunyuan-dit",
        "HunyuanDiT2DControlNetModel",
    ),
    ControlNet(
        "a ControlNet for Sana", all_of(_DIT, has_any("input_block.weight"),
            has_any("transformer_blocks.0.ff.conv_inverted.weight")), "sana", "SanaControlNetModel",
    ),
    ControlNet(
        "a ControlNet for Z-Image that inpaints too", dimension("control_all_x_embedder.2-1.weight", 1, 132), "z-image",
        "ZImageControlNetModel", "inpainting",
    ),
    ControlNet(
        "a ControlNet for Z-Image",
        has_any("control_all_x_embedder.2-1.weight", "control_layers.0.adaLN_modulation.0.weight"), "z-image",
        "ZImageControlNetModel",
    ),
    ControlNet(
        "a ControlNet for Cosmos", has_any("control_blocks.0.after_proj.weight"), None, "CosmosControlNetModel"
    ),
    ControlNet(
        "a ControlNet for a UNet, whose base does not show",
        has_any(
            "control_model.time_embed.0.weight", "control_model.input_hint_block.0.weight", "lora_controlnet",
            "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight",
        ), None, "ControlNetModel",
    ),
    ControlNet(
        "a ControlNet whose base does not show",
        has_any("controlnet_blocks.0.weight", "controlnet_x_embedder.weight"), None, None,
    ),
)  # fmt: skip


# Variants that a ControlNet's config.json shows: class -> key, condition on its value, variant.
_VARIANTS: Mapping[str, tuple[tuple[str, Callable[[int], bool], str], ...]] = {
    "FluxControlNetModel": (("num_mode", lambda modes: modes > 0, "union"),),
    "ControlNetUnionModel": (
        ("num_control_type", lambda types: types > 6, "union-promax"),
        ("num_control_type", lambda types: types <= 6, "union"),
    ),
    "SD3ControlNetModel": (("extra_conditioning_channels", lambda channels: channels > 0, "inpainting"),),
    "QwenImageControlNetModel": (("extra_condition_channels", lambda channels: channels > 0, "inpainting"),),
    # two images' latents and one channel of mask: an odd number
    "ZImageControlNetModel": (("control_in_dim", lambda channels: channels % 2 == 1, "inpainting"),),
}


def configured_variant(class_name: str, config: Mapping[str, object]) -> str | None:
    """Return the variant that a ControlNet's config.json describes, or None."""
    for key, holds, variant in _VARIANTS.get(class_name, ()):
        value = config.get(key)
        if isinstance(value, int) and holds(value):
            return variant
    return None


def find_controlnet(index: TensorIndex) -> tuple[ControlNet, tuple[str, ...]] | None:
    """Return the row that the file matches, with the evidence; None when it is no ControlNet."""
    for row in CONTROLNETS:
        facts = row.condition.match(index)
        if facts is not None:
            title = f"{row.what}, a control LoRA" if is_control_lora(index) else row.what
            return row, (f"{facts[0]}: {title}", *facts[1:3])
    return None


def is_control_lora(index: TensorIndex) -> bool:
    """True if the file is a control LoRA: its authors mark it with an empty tensor."""
    return "lora_controlnet" in index.tensors


def unfolded_bytes(index: TensorIndex) -> int:
    """Return the bytes, in half precision, of the ControlNet that a control LoRA becomes.

    Each pair of factors is a weight. Weights that the file leaves to the base are not counted; published files change
    every weight.
    """
    sizes = {name: shape for name, (_, shape) in index.tensors.items()}
    weights = 0
    for name, shape in sizes.items():
        if name.endswith(".up"):
            weights += math.prod((*shape[:1], *sizes.get(f"{name.removesuffix('.up')}.down", ())[1:]))
        elif not name.endswith(".down"):
            weights += math.prod(shape)
    return 2 * weights
