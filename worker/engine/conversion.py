"""Conversion of published tensor names to those of diffusers: prefixes, text encoders, FLUX, old attention.

diffusers converts most families itself. This module does the rest: diffusers splits FLUX at a fixed width of 3072,
takes the first CLIP in the file for either of two, and wants prefixes off.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_wan_vae_to_diffusers

from worker.core.single_file import VAE_PREFIXES, text_encoders
from worker.engine.quantization import Weights

# Where tools put the denoiser in a file; longer ones first, since one contains another.
DENOISER_PREFIXES = (
    "model.diffusion_model.", "diffusion_model.", "model.model.", "transformer.", "unet.", "net.", "model.",
)  # fmt: skip
# Playground 2.5 keeps mean and deviation of its latents in its file; they belong to the VAE.
_LATENT_STATISTICS = ("edm_mean", "edm_std")
_PLAYGROUND_SCALING = 0.5
# What tools put before a language model's names, and what transformers has there instead.
_LANGUAGE_MODEL = (
    (("transformer.", ""),),
    (("transformer.", ""), ("model.", "")),
    (("transformer.", ""), ("", "model.")),
    (("transformer.", ""), ("visual.", "model.visual."), ("model.", "model.language_model.")),
    (("transformer.", ""), ("model.", "language_model.")),
)


def split(weights: Weights) -> dict[str, list[Weights]]:
    """Return the parts of a file by kind: `denoiser`, `vae`, and the text encoders, `clip`, `t5` and `llm`, in order.

    Names lose their prefix. `weights` is emptied. Tensors of no part (moving averages, optimizer states, markers) are
    left out.
    """
    statistics = {name: weights.pop(name) for name in _LATENT_STATISTICS if name in weights}
    parts = _beside_denoiser(weights)
    denoiser = next(filter(None, (_take(weights, prefix) for prefix in DENOISER_PREFIXES)), None)
    if denoiser is None and weights and not parts:
        # A denoiser alone, without any prefix. A file with a VAE or text encoders has one for it.
        denoiser = dict(weights)
    if denoiser is not None:
        parts["denoiser"] = [denoiser]
    weights.clear()
    if statistics and "vae" in parts:
        parts["vae"][0].update(statistics)
    return parts


def _beside_denoiser(weights: Weights) -> dict[str, list[Weights]]:
    """Take the VAE and the text encoders out of a file's weights."""
    parts: dict[str, list[Weights]] = {}
    for prefix in VAE_PREFIXES:
        part = _take(weights, prefix)
        if part:
            parts.setdefault("vae", []).append(part)
    for prefix, kind in text_encoders(weights).items():
        parts.setdefault(kind, []).append(_take(weights, prefix))
    return parts


def latent_statistics(class_name: str, weights: Weights) -> dict[str, Any]:
    """Return the config values that the marks of Playground 2.5 give its VAE."""
    if class_name != "AutoencoderKL" or "edm_mean" not in weights:
        return {}
    mean, deviation = (weights[name].flatten().tolist() for name in _LATENT_STATISTICS)
    return {"latents_mean": mean, "latents_std": deviation, "scaling_factor": _PLAYGROUND_SCALING}


def attention_names(weights: Weights) -> Weights:
    """Return a model of diffusers' first years in today's names of its attention, which was made of other layers."""
    renamed: Weights = {}
    for name, tensor in weights.items():
        stem, _, leaf = name.rpartition(".")
        block, _, layer = stem.rpartition(".")
        if layer in _FIRST_ATTENTION:
            name = f"{block}.{_FIRST_ATTENTION[layer]}.{leaf}"
            tensor = tensor.flatten(1) if tensor.ndim > 2 else tensor
        renamed[name] = tensor
    return renamed


_FIRST_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def clip_names(weights: Weights, model: Any) -> Weights:
    """Return a checkpoint's CLIP text encoder in the names of `model`: from OpenCLIP's layout or a CLIP one."""
    if any(name.startswith("model.transformer.resblocks.") for name in weights):
        from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

        renamed = convert_open_clip_checkpoint(model, dict(weights), prefix="model.")
    else:
        renamed = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
        # Written before transformers 4.31, or after 5.6: CLIPTextModel without its wrapper.
        renamed = {
            name
            if name.startswith(("text_model.", "text_projection.", "logit_scale"))
            else f"text_model.{name}": tensor
            for name, tensor in renamed.items()
        }
    if not hasattr(model, "text_model"):
        renamed = {name.removeprefix("text_model."): tensor for name, tensor in renamed.items()}
    expected = model.state_dict().keys()
    if "text_projection.weight" in expected and "text_projection.weight" not in renamed:
        # Stable Diffusion 3 projects its first CLIP by the identity and its files leave that out.
        renamed["text_projection.weight"] = torch.eye(model.config.projection_dim, model.config.hidden_size)
    return {name: tensor for name, tensor in renamed.items() if name in expected}


def t5_names(weights: Weights, model: Any) -> Weights:
    """Return a checkpoint's T5 encoder in the names of transformers, which every T5 has."""
    return {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}


def language_model_names(weights: Weights, model: Any) -> Weights:
    """Return a language model's tensors in the names of `model`: those of the spelling that fits most of them."""
    expected = model.state_dict().keys()
    spelled = ({_respelled(name, spelling): tensor for name, tensor in weights.items()} for spelling in _LANGUAGE_MODEL)
    best = max(spelled, key=lambda named: len(named.keys() & expected))
    return {name: tensor for name, tensor in best.items() if name in expected}


def _respelled(name: str, spelling: Iterable[tuple[str, str]]) -> str:
    (wrapper, _), *others = spelling
    name = name.removeprefix(wrapper)
    return next((new + name.removeprefix(old) for old, new in others if name.startswith(old)), name)


def _flux(weights: Weights) -> Weights:
    """Return FLUX.1 in diffusers' names, from Black Forest Labs'. The width is the file's."""
    width = weights["img_in.weight"].shape[0]
    renamed: Weights = {}
    for name, tensor in weights.items():
        segments = name.split(".")
        leaf = segments[-1]
        if segments[0] in _FLUX_TOP:
            renamed[f"{_FLUX_TOP[segments[0]]}.{leaf}"] = tensor
        elif segments[0] in _FLUX_EMBEDDERS:
            renamed[
                f"time_text_embed.{_FLUX_EMBEDDERS[segments[0]]}.linear_{1 + (segments[1] == 'out_layer')}.{leaf}"
            ] = tensor
        elif segments[0] == "final_layer":
            # Shift before scale in the original, scale before shift in diffusers.
            ending = "norm_out.linear" if segments[1] == "adaLN_modulation" else "proj_out"
            renamed[f"{ending}.{leaf}"] = _swapped(tensor) if ending == "norm_out.linear" else tensor
        elif segments[0] == "double_blocks":
            renamed |= _flux_double(f"transformer_blocks.{segments[1]}.", segments[2:], tensor)
        elif segments[0] == "single_blocks":
            renamed |= _flux_single(f"single_transformer_blocks.{segments[1]}.", segments[2:], tensor, width)
    return renamed


_FLUX_TOP = {"img_in": "x_embedder", "txt_in": "context_embedder"}
_FLUX_EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
_FLUX_ATTENTION = {  # of the image's stream, and of the text's
    "img_attn": (("to_q", "to_k", "to_v"), "to_out.0", "norm_q", "norm_k"),
    "txt_attn": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm_added_q", "norm_added_k"),
}


def _flux_double(block: str, segments: list[str], tensor: torch.Tensor) -> Weights:
    part, leaf = segments[0], segments[-1]
    if part in _FLUX_ATTENTION:
        entries, way_out, norm_q, norm_k = _FLUX_ATTENTION[part]
        if segments[1] == "qkv":
            return _pieces(f"{block}attn.", entries, leaf, tensor.chunk(3, dim=0))
        if segments[1] == "proj":
            return {f"{block}attn.{way_out}.{leaf}": tensor}
        return {f"{block}attn.{norm_q if segments[2] == 'query_norm' else norm_k}.weight": tensor}
    side = "" if part.startswith("img") else "_context"
    if part.endswith("_mod"):
        return {f"{block}norm1{side}.linear.{leaf}": tensor}
    layer = "net.0.proj" if segments[1] == "0" else "net.2"
    return {f"{block}ff{side}.{layer}.{leaf}": tensor}


def _flux_single(block: str, segments: list[str], tensor: torch.Tensor, width: int) -> Weights:
    part, leaf = segments[0], segments[-1]
    if part == "linear1":
        sizes = (width, width, width, tensor.shape[0] - 3 * width)
        return _pieces(block, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), leaf, tensor.split(sizes, dim=0))
    if part == "linear2":
        return {f"{block}proj_out.{leaf}": tensor}
    if part == "modulation":
        return {f"{block}norm.linear.{leaf}": tensor}
    return {f"{block}attn.{'norm_q' if segments[1] == 'query_norm' else 'norm_k'}.weight": tensor}


def _pieces(prefix: str, names: Iterable[str], leaf: str, tensors: Iterable[torch.Tensor]) -> Weights:
    # Each lies within the fused tensor, and together they are all of it: copies would need the memory twice.
    return {f"{prefix}{name}.{leaf}": piece for name, piece in zip(names, tensors, strict=True)}


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first], dim=0)


def _take(weights: Weights, prefix: str) -> Weights:
    names = [name for name in weights if name.startswith(prefix)]
    return {name.removeprefix(prefix): weights.pop(name) for name in names}


def _flux2_vae(weights: Weights) -> Weights:
    """Return FLUX.2's autoencoder in diffusers' names, from Black Forest Labs'."""
    inner = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
    named: Weights = {}
    for name, tensor in weights.items():
        old = next((start for start in inner if name.startswith(start)), None)
        named[name if old is None else inner[old] + name.removeprefix(old)] = tensor
    kept = {name: tensor for name, tensor in named.items() if name.startswith("bn.")}
    blocks = ["DownEncoderBlock2D"] * 4
    converted: Weights = convert_ldm_vae_checkpoint(named, {"down_block_types": blocks, "up_block_types": blocks})
    return converted | kept


_WAN_22_BLOCKS = (
    (
        re.compile(r"^encoder\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)\b"),
        r"encoder.down_blocks.\1.downsampler.\2",
    ),
    (re.compile(r"^encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\."), r"encoder.down_blocks.\1.resnets.\2."),
    (
        re.compile(r"^decoder\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)\b"),
        r"decoder.up_blocks.\1.upsampler.\2",
    ),
    (re.compile(r"^decoder\.upsamples\.(\d+)\.upsamples\.(\d+)\."), r"decoder.up_blocks.\1.resnets.\2."),
)
_WAN_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}


def _wan_vae(weights: Weights) -> Weights:
    """Return the autoencoder of Wan 2.1, 2.2 or Qwen-Image in diffusers' names. diffusers' own reader knows no 2.2."""
    named: Weights = {}
    for name, tensor in weights.items():
        for pattern, replacement in _WAN_22_BLOCKS:
            name, count = pattern.subn(replacement, name)
            if count:
                for old, new in (*_WAN_RESIDUAL.items(), ("shortcut", "conv_shortcut")):
                    name = name.replace(f".{old}.", f".{new}.")
                break
        named[name] = tensor
    converted: Weights = convert_wan_vae_to_diffusers(named)
    return converted


# Readers of layouts for which diffusers has no converter, or one for files of one width only.
CONVERTERS: Mapping[str, Callable[[Weights], Weights]] = {
    "FluxTransformer2DModel": _flux,
    "AutoencoderKLFlux2": _flux2_vae,
    "AutoencoderKLWan": _wan_vae,
    "AutoencoderKLQwenImage": _wan_vae,  # Wan's autoencoder, in all its names
}
