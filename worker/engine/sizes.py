"""Sizes of a denoiser that its tensors show: one row of config values for each model class, by diffusers' names.

One config stands for a family, and a family has models of several sizes: what its tensors show goes before it.
A value that no tensor shows stays the config's: the width of a head, the image size.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from worker.core.errors import CorruptFile

Weights = Mapping[str, torch.Tensor]
Config = Mapping[str, Any]
# Reads one config value; `NotImplemented` where the tensors do not show it.
Reader = Callable[[Weights, Config], Any]


def sizes_of(class_name: str, weights: Weights, config: Config) -> dict[str, Any]:
    """Return the config values of a `class_name` that differ from `config` by its tensors, in diffusers' names."""
    values = {key: read(weights, config) for key, read in _SIZES.get(class_name, {}).items()}
    return {key: value for key, value in values.items() if value is not NotImplemented and value != config.get(key)}


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; for a packed tensor the unpacked one, since its own counts packed bytes."""
    if hasattr(tensor, "quant_shape"):  # GGUF
        return tuple(tensor.quant_shape)
    if getattr(tensor, "weight_scale_2", None) is not None:  # nvfp4: two numbers in a byte
        return (*tensor.shape[:-1], 2 * tensor.shape[-1])
    return tuple(tensor.shape)


def count(weights: Weights, prefix: str) -> int:
    """Return the number of blocks whose names start with `prefix` and a number. Raises CorruptFile for a gap in them.

    A name may say a million: the model would be built with as many blocks.
    """
    numbers = {int(name[len(prefix) :].split(".", 1)[0]) for name in weights if name.startswith(prefix)}
    last = max(numbers, default=-1)
    if last >= len(weights):
        raise CorruptFile(
            f"The file numbers its {prefix[:40]}* up to {last} and holds {len(weights)} tensors; it is damaged.",
            field="model",
            retryable=False,
        )
    return last + 1


def _dim(name: str, axis: int) -> Reader:
    def read(weights: Weights, config: Config) -> Any:
        return shape_of(weights[name])[axis] if name in weights else NotImplemented

    return read


def _optional(name: str, axis: int) -> Reader:
    """Read a size of a module that some models of the class lack: None is their value."""

    def read(weights: Weights, config: Config) -> Any:
        return shape_of(weights[name])[axis] if name in weights else None

    return read


def _blocks(prefix: str) -> Reader:
    def read(weights: Weights, config: Config) -> Any:
        return count(weights, prefix) or NotImplemented

    return read


def _has(name: str) -> Reader:
    return lambda weights, config: name in weights


def _one_of(name: str, there: Any, absent: Any) -> Reader:
    return lambda weights, config: there if name in weights else absent


def _quotient(name: str, key: str) -> Reader:
    """Read how often the config's `key` goes into a width: the heads of a known size, or the size of known heads."""

    def read(weights: Weights, config: Config) -> Any:
        return shape_of(weights[name])[0] // int(config[key]) if name in weights and config.get(key) else NotImplemented

    return read


def _per_patch(name: str) -> Reader:
    """Read the channels of a last layer that returns whole patches."""

    def read(weights: Weights, config: Config) -> Any:
        if name not in weights:
            return NotImplemented
        patch = config.get("patch_size", 1)
        return shape_of(weights[name])[0] // (math.prod(patch) if isinstance(patch, list | tuple) else int(patch) ** 2)

    return read


def _numbers(pattern: str) -> Reader:
    """Read which blocks have the module `pattern`, `#` being their number."""
    start, end = pattern.split("#")

    def read(weights: Weights, config: Config) -> Any:
        return sorted(
            int(name[len(start) : -len(end)]) for name in weights if name.startswith(start) and name.endswith(end)
        )

    return read


def _spread(prefix: str, among: str) -> Reader:
    """Read where the blocks of `prefix` stand among those of `among`, which they accompany evenly."""

    def read(weights: Weights, config: Config) -> Any:
        some, all_blocks = count(weights, prefix), count(weights, among)
        return list(range(0, all_blocks, all_blocks // some)) if some and all_blocks else NotImplemented

    return read


def _sana_heads(key: str) -> Reader:
    """Read Sana's cross attention, whose heads are of another size at each width."""
    known = {1152: (16, 72), 2240: (20, 112)}

    def read(weights: Weights, config: Config) -> Any:
        width = shape_of(weights["proj_out.weight"])[1] if "proj_out.weight" in weights else 0
        heads, size = known.get(width, (NotImplemented, NotImplemented))
        return heads if key == "num_cross_attention_heads" else size

    return read


_WAN: dict[str, Reader] = {
    "in_channels": _dim("patch_embedding.weight", 1),
    "out_channels": _per_patch("proj_out.weight"),
    "num_attention_heads": _quotient("patch_embedding.weight", "attention_head_dim"),
    "num_layers": _blocks("blocks."),
    "ffn_dim": _dim("blocks.0.ffn.net.0.proj.weight", 0),
    "text_dim": _dim("condition_embedder.text_embedder.linear_1.weight", 1),
    # Wan 2.1 sees the first frame through CLIP too; 2.2 does not.
    "image_dim": _optional("condition_embedder.image_embedder.norm1.weight", 0),
    "added_kv_proj_dim": _optional("blocks.0.attn2.add_k_proj.weight", 1),
    "pos_embed_seq_len": _optional("condition_embedder.image_embedder.pos_embed", 1),
}
_FLUX: dict[str, Reader] = {
    "in_channels": _dim("x_embedder.weight", 1),
    "out_channels": _dim("proj_out.weight", 0),  # Fill and Control take more channels than they return
    "num_attention_heads": _quotient("x_embedder.weight", "attention_head_dim"),
    "joint_attention_dim": _dim("context_embedder.weight", 1),
    "num_layers": _blocks("transformer_blocks."),
    "num_single_layers": _blocks("single_transformer_blocks."),
    "guidance_embeds": _has("time_text_embed.guidance_embedder.linear_1.weight"),
}
_UNET: Mapping[str, Reader] = {
    "in_channels": _dim("conv_in.weight", 1),
    "time_cond_proj_dim": _optional("time_embedding.cond_proj.weight", 1),
}

_SIZES: Mapping[str, Mapping[str, Reader]] = {
    "UNet2DConditionModel": _UNET,
    "FluxTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX
    | {"guidance_embeds": _has("time_guidance_embed.guidance_embedder.linear_1.weight")},
    "SD3Transformer2DModel": {
        "num_layers": _blocks("transformer_blocks."),
        "num_attention_heads": _quotient("pos_embed.proj.weight", "attention_head_dim"),
        "caption_projection_dim": _dim("context_embedder.weight", 0),
        "pos_embed_max_size": lambda weights, config: (
            math.isqrt(shape_of(weights["pos_embed.pos_embed"])[1])
            if "pos_embed.pos_embed" in weights
            else NotImplemented
        ),
        "qk_norm": _one_of("transformer_blocks.0.attn.norm_q.weight", "rms_norm", None),
        "dual_attention_layers": _numbers("transformer_blocks.#.attn2.to_q.weight"),
    },
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN
    | {
        "vace_layers": _spread("vace_blocks.", "blocks."),
        "vace_in_channels": _dim("vace_patch_embedding.weight", 1),
    },
    "LTXVideoTransformer3DModel": {
        "num_layers": _blocks("transformer_blocks."),
        "attention_head_dim": _quotient("proj_in.weight", "num_attention_heads"),
        "cross_attention_dim": _dim("transformer_blocks.0.attn2.to_k.weight", 1),
    },
    "LTX2VideoTransformer3DModel": {"num_layers": _blocks("transformer_blocks.")},
    "SanaTransformer2DModel": {
        "num_layers": _blocks("transformer_blocks."),
        "num_attention_heads": _quotient("patch_embed.proj.weight", "attention_head_dim"),
        "num_cross_attention_heads": _sana_heads("num_cross_attention_heads"),
        "cross_attention_head_dim": _sana_heads("cross_attention_head_dim"),
        "cross_attention_dim": _dim("caption_projection.linear_1.weight", 0),
        "guidance_embeds": _has("time_embed.guidance_embedder.linear_1.weight"),
        "qk_norm": _one_of("transformer_blocks.0.attn1.norm_q.weight", "rms_norm_across_heads", None),
    },
    "QwenImageTransformer2DModel": {"num_layers": _blocks("transformer_blocks.")},
    "ZImageTransformer2DModel": {"n_layers": _blocks("layers.")},
    "Lumina2Transformer2DModel": {"num_layers": _blocks("layers.")},
    "ChromaTransformer2DModel": {
        "num_layers": _blocks("transformer_blocks."),
        "num_single_layers": _blocks("single_transformer_blocks."),
    },
    "AuraFlowTransformer2DModel": {
        "num_mmdit_layers": _blocks("joint_transformer_blocks."),
        "num_single_dit_layers": _blocks("single_transformer_blocks."),
    },
    "HunyuanVideoTransformer3DModel": {
        "in_channels": _dim("x_embedder.proj.weight", 1),
        "num_layers": _blocks("transformer_blocks."),
        "num_single_layers": _blocks("single_transformer_blocks."),
        "guidance_embeds": _has("time_text_embed.guidance_embedder.linear_1.weight"),
    },
    "HunyuanImageTransformer2DModel": {
        "guidance_embeds": _has("time_guidance_embed.guidance_embedder.linear_1.weight"),
        "use_meanflow": _has("time_guidance_embed.timestep_embedder_r.linear_1.weight"),
    },
}
