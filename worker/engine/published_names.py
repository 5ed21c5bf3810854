"""Diffusers' tensor names turned back into those in which checkpoints are published: the way out of `conversion.py`.

Stable Diffusion 1, 2 and XL, 3, and FLUX.1, with their autoencoder and text encoders: what other programs read. Of all
other models a file has diffusers' own names.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
Renames = Sequence[tuple[str, str]]

_RESNET: Renames = (
    (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."), (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."), (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)  # fmt: skip
_UNET_TOP: Renames = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."), (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."), (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."), (r"^conv_norm_out\.", "out.0."), (r"^conv_out\.", "out.2."),
)  # fmt: skip
_VAE: Renames = (
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".up.\1.block.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."), (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."), (r"\.group_norm\.", ".norm."),
    (r"\.to_out\.0\.", ".proj_out."), (r"\.to_([qkv])\.", r".\1."), (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)  # fmt: skip
_OPEN_CLIP: Renames = (
    (r"^text_model\.", ""), (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."), (r"\.layer_norm1\.", ".ln_1."), (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."), (r"\.mlp\.fc2\.", ".mlp.c_proj."), (r"^final_layer_norm\.", "ln_final."),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
)  # fmt: skip
_FLUX: Renames = (
    (r"^x_embedder\.", "img_in."), (r"^context_embedder\.", "txt_in."),
    (r"^time_text_embed\.timestep_embedder\.", "time_in."), (r"^time_text_embed\.text_embedder\.", "vector_in."),
    (r"^time_text_embed\.guidance_embedder\.", "guidance_in."),
    (r"^(time_in|vector_in|guidance_in)\.linear_1\.", r"\1.in_layer."),
    (r"^(time_in|vector_in|guidance_in)\.linear_2\.", r"\1.out_layer."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."), (r"^proj_out\.", "final_layer.linear."),
    (r"^single_transformer_blocks\.(\d+)\.norm\.linear\.", r"single_blocks.\1.modulation.lin."),
    (r"^single_transformer_blocks\.(\d+)\.proj_out\.", r"single_blocks.\1.linear2."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^single_transformer_blocks\.", "single_blocks."), (r"^transformer_blocks\.", "double_blocks."),
    (r"\.norm1\.linear\.", ".img_mod.lin."), (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."), (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."), (r"\.ff\.net\.2\.", ".img_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."), (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
)  # fmt: skip
_SD3: Renames = (
    (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^time_text_embed\.timestep_embedder\.", "t_embedder."), (r"^time_text_embed\.text_embedder\.", "y_embedder."),
    (r"^([ty]_embedder)\.linear_1\.", r"\1.mlp.0."), (r"^([ty]_embedder)\.linear_2\.", r"\1.mlp.2."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."), (r"^proj_out\.", "final_layer.linear."),
    (r"^transformer_blocks\.", "joint_blocks."),
    (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
    (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
    (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
    (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
    (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."), (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."), (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
    (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
    (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
)  # fmt: skip
# What the original keeps in one tensor: the names of the pieces in order, and of the whole.
_FLUX_JOINED = (
    ("attn.to_q attn.to_k attn.to_v proj_mlp", "linear1"),
    ("attn.to_q attn.to_k attn.to_v", "img_attn.qkv"),
    ("attn.add_q_proj attn.add_k_proj attn.add_v_proj", "txt_attn.qkv"),
)
_SD3_JOINED = (
    ("attn.to_q attn.to_k attn.to_v", "x_block.attn.qkv"),
    ("attn.add_q_proj attn.add_k_proj attn.add_v_proj", "context_block.attn.qkv"),
    ("attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.qkv"),
)


def _renamed(tensors: Tensors, renames: Renames) -> Tensors:
    named: Tensors = {}
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    return named


def _joined(tensors: Tensors, groups: Sequence[tuple[str, str]]) -> Tensors:
    """Put pieces together that the original keeps in one tensor."""
    joined = dict(tensors)
    for pieces, whole in groups:
        first, *others = pieces.split()
        for name in [name for name in joined if f".{first}." in name]:
            stem, leaf = name.split(f".{first}.")
            names = [name, *(f"{stem}.{other}.{leaf}" for other in others)]
            if all(other in joined for other in names):
                joined[f"{stem}.{whole}.{leaf}"] = torch.cat([joined.pop(other) for other in names])
    return joined


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    """Return shift before scale, where diffusers has scale before shift."""
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


def _unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    layers = int(config["layers_per_block"])
    named: Tensors = {}
    for name, tensor in _renamed(tensors, _UNET_TOP).items():
        words = name.split(".")
        if words[0] in ("down_blocks", "up_blocks", "mid_block"):
            name = _unet_block(words, layers, tensors)
        named[name] = tensor
    return named


def _unet_block(words: list[str], layers: int, names: Mapping[str, torch.Tensor]) -> str:
    """Return the original name of a tensor in a block of the UNet."""
    if words[0] == "mid_block":
        kind, rest = words[1], words[3:]
        place = f"middle_block.{2 * int(words[2]) + (kind == 'attentions')}"
    else:
        block, kind, index, rest = int(words[1]), words[2], int(words[3]), words[4:]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest[-1]}"
        if kind == "upsamplers":  # behind the attention, where the block has one
            has_attention = any(name.startswith(f"up_blocks.{block}.attentions.") for name in names)
            return f"output_blocks.{block * (layers + 1) + layers}.{1 + has_attention}.conv.{rest[-1]}"
        side = f"input_blocks.{1 + block * (layers + 1) + index}"
        side = side if words[0] == "down_blocks" else f"output_blocks.{block * (layers + 1) + index}"
        place = f"{side}.{int(kind == 'attentions')}"
    name = f"{place}.{'.'.join(rest)}"
    if kind == "resnets":
        for pattern, replacement in _RESNET:
            name = re.sub(pattern, replacement, name)
    return name


def _vae(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    blocks = len(config["block_out_channels"])

    def backwards(match: re.Match[str]) -> str:
        return f".up.{blocks - 1 - int(match[1])}."

    named: Tensors = {}
    for name, tensor in _renamed(tensors, _VAE).items():
        # The original attention is made of convolutions of one pixel, that of diffusers of linear layers.
        is_layer = ".mid.attn_" in name and tensor.ndim == 2
        named[re.sub(r"\.up\.(\d+)\.", backwards, name)] = tensor[:, :, None, None] if is_layer else tensor
    return named


def _flux(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    turned = {name: _turned(it) if name.startswith("norm_out.linear.") else it for name, it in tensors.items()}
    single = {name: turned.pop(name) for name in list(turned) if name.startswith("single_transformer_blocks.")}
    return _renamed(_joined(turned, _FLUX_JOINED[1:]) | _joined(single, _FLUX_JOINED[:1]), _FLUX)


def _sd3(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    last = f"transformer_blocks.{int(config['num_layers']) - 1}.norm1_context.linear."
    turned = {name: _turned(it) if name.startswith(("norm_out.linear.", last)) else it for name, it in tensors.items()}
    return _renamed(_joined(turned, _SD3_JOINED), _SD3)


def _clip(tensors: Tensors) -> Tensors:
    return {
        name if name.startswith("text_projection.") else f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in tensors.items()
    }


def _open_clip(tensors: Tensors) -> Tensors:
    named = _renamed(tensors, _OPEN_CLIP)
    if (projection := named.pop("text_projection.weight", None)) is not None:
        named["text_projection"] = projection.T
    joined: Tensors = {}
    for name, tensor in named.items():
        stem, _, rest = name.partition(".self_attn.q_proj.")
        if rest:
            sides = [named[f"{stem}.self_attn.{side}_proj.{rest}"] for side in "qkv"]
            joined[f"{stem}.attn.in_proj_{rest}"] = torch.cat(sides)
        elif ".self_attn." not in name:
            joined[name] = tensor
    return joined


def original(pipe: Any) -> Tensors | None:
    """Return a pipeline's tensors in the names of its published checkpoints; None for a family without such here."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    denoiser: Any = parts.get("unet", parts.get("transformer"))
    write = _writer(denoiser, parts)
    if write is None:
        return None
    tensors = {f"model.diffusion_model.{name}": it for name, it in write(_state(denoiser), denoiser.config).items()}
    for name, part in sorted(parts.items()):
        if name == "vae":
            start = "vae." if write is _flux else "first_stage_model."
            tensors |= {start + key: tensor for key, tensor in _vae(_state(part), part.config).items()}
        elif name.startswith("text_encoder"):
            start, spell = _encoder(name, part, write is _unet, "text_encoder_2" in parts)
            tensors |= {start + key: tensor for key, tensor in spell(_state(part)).items()}
    return tensors


def _writer(denoiser: Any, parts: Mapping[str, Any]) -> Callable[[Tensors, Mapping[str, Any]], Tensors] | None:
    """Return what writes the names of a denoiser; None where it, or a part beside it, is of another make."""
    write = _DENOISERS.get(type(denoiser).__name__)
    if not {*parts} <= _KNOWN or ("vae" in parts and type(parts["vae"]).__name__ != "AutoencoderKL"):
        return None
    if write is _unet and (not isinstance(denoiser.config.layers_per_block, int) or _is_odd(denoiser.config)):
        return None
    return write


def _encoder(name: str, part: Any, of_unet: bool, several: bool) -> tuple[str, Callable[[Tensors], Tensors]]:
    """Return where a text encoder stands in a published file, and how its names are spelled there."""
    if hasattr(part.config, "num_decoder_layers"):  # T5
        return "text_encoders.t5xxl.transformer.", lambda tensors: tensors
    if not of_unet:
        return f"text_encoders.clip_{'g' if name.endswith('_2') else 'l'}.transformer.", _clip
    is_open = part.config.hidden_act != "quick_gelu" or name.endswith("_2")
    if several:
        number = int(name.endswith("_2"))
        return (
            f"conditioner.embedders.{number}.{'model' if number else 'transformer'}.",
            _open_clip if number else _clip,
        )
    return ("cond_stage_model.model.", _open_clip) if is_open else ("cond_stage_model.transformer.", _clip)


def _is_odd(config: Mapping[str, Any]) -> bool:
    """True for a UNet of another make than Stable Diffusion's, whose blocks have other layers."""
    blocks = {*config["down_block_types"], *config["up_block_types"]}
    return not all(block.startswith(("CrossAttn", "DownBlock", "UpBlock")) for block in blocks)


def _state(part: torch.nn.Module) -> Tensors:
    return {name: tensor.detach() for name, tensor in part.state_dict().items()}


_DENOISERS: Mapping[str, Callable[[Tensors, Mapping[str, Any]], Tensors]] = {
    "UNet2DConditionModel": _unet,
    "FluxTransformer2DModel": _flux,
    "SD3Transformer2DModel": _sd3,
}
_KNOWN = frozenset({"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"})
