"""Shapes that distinguish the UNets of Stable Diffusion and its kin."""

from worker.catalog.conditions import Condition, all_of, any_of, dimension, has_any, none_of, shape_is

_LDM = "input_blocks.{}.1.transformer_blocks.{}.attn2.to_k.weight"
_DIFFUSERS = "down_blocks.{}.attentions.0.transformer_blocks.{}.attn2.to_k.weight"
# A ControlNet has the way down and the middle of its UNet; only a denoiser has the way up.
WAY_UP = has_any("output_blocks.0.0.in_layers.0.weight", "up_blocks.0.resnets.0.conv1.weight")
TIME = has_any(
    "input_blocks.1.1.time_stack.0.norm1.weight",
    "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
)
KOLORS = dimension("encoder_hid_proj.weight", 1, 4096)


def cross_attention(level: int, width: int, context: int) -> Condition:
    """Condition that text of `context` channels enters level 0 or 1 of a UNet that is `width` wide there."""
    return any_of(
        shape_is(_LDM.format((1, 4)[level], 0), width, context), shape_is(_DIFFUSERS.format(level, 0), width, context)
    )


def depth(blocks: int) -> Condition:
    """Condition that the third level has exactly `blocks` transformer blocks in its first attention."""
    last, beyond = blocks - 1, blocks
    return all_of(
        has_any(_LDM.format(7, last), _DIFFUSERS.format(2, last)),
        none_of(has_any(_LDM.format(7, beyond), _DIFFUSERS.format(2, beyond))),
    )


GUIDED = has_any("time_embedding.cond_proj.weight")  # guidance as an input: a mark of distillation
