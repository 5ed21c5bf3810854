"""Saved pipelines as single files in the key layouts that models are published in, written from diffusers' own names.

The way back from what the worker reads, and written apart from it: a mistake in one is not repeated in the other.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def single_file(folder: str | Path, path: str | Path) -> Path:
    """Write a saved pipeline of Stable Diffusion 1, XL or 3, or of FLUX.1, as one file in its original layout."""
    folder = Path(folder)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in denoiser(folder).items()}
    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    stable = name.startswith("StableDiffusion")
    tensors |= {f"{'first_stage_model' if stable else 'vae'}.{key}": tensor for key, tensor in vae(folder).items()}
    if name.startswith("StableDiffusionXL"):
        tensors |= _under("conditioner.embedders.0.transformer.", clip(folder / "text_encoder"))
        tensors |= _under("conditioner.embedders.1.model.", open_clip(folder / "text_encoder_2"))
    elif name.startswith("StableDiffusion3"):
        tensors |= _under("text_encoders.clip_l.transformer.", clip(folder / "text_encoder"))
        tensors |= _under("text_encoders.clip_g.transformer.", clip(folder / "text_encoder_2"))
        tensors |= _under("text_encoders.t5xxl.transformer.", weights(folder / "text_encoder_3"))
    elif name.startswith("Flux"):
        tensors |= _under("text_encoders.clip_l.transformer.", clip(folder / "text_encoder"))
        tensors |= _under("text_encoders.t5xxl.transformer.", weights(folder / "text_encoder_2"))
    else:
        tensors |= _under("cond_stage_model.transformer.", clip(folder / "text_encoder"))
    return save(tensors, path)


def denoiser(folder: str | Path) -> Tensors:
    """The UNet or transformer of a saved pipeline in its original names, without a prefix."""
    folder = Path(folder)
    if (folder / "unet").is_dir():
        layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
        found = weights(folder / "unet")
        return {ldm_unet_name(name, layers, found): tensor for name, tensor in found.items()}
    found = weights(folder / "transformer")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    return _sd3(found, config) if config["_class_name"] == "SD3Transformer2DModel" else _flux(found, config)


def vae(folder: str | Path) -> Tensors:
    """The VAE of a saved pipeline in its original names, without a prefix."""
    folder = Path(folder) / "vae"
    blocks = len(json.loads((folder / "config.json").read_text())["block_out_channels"])
    return {
        # the original attention is made of 1x1 convolutions, that of diffusers of linear layers
        _ldm_vae_name(name, blocks): tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        for name, tensor in weights(folder).items()
    }


def clip(folder: Path) -> Tensors:
    """A CLIP text encoder with the names that every published file has: `text_model.` before all but the projection."""
    return {
        name if name.startswith("text_projection") else f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in weights(folder).items()
    }


def open_clip(folder: Path) -> Tensors:
    """A CLIP text encoder in OpenCLIP's names: queries, keys and values in one tensor."""
    found = {name.removeprefix("text_model."): tensor for name, tensor in weights(folder).items()}
    tensors: Tensors = {}
    for name, tensor in found.items():
        words = name.split(".")
        if words[0] == "encoder":
            place = f"transformer.resblocks.{words[2]}."
            if words[4] in ("q_proj", "k_proj", "v_proj"):
                stem, leaf = name.rpartition(".")[0].rpartition(".")[0], words[-1]
                joined = torch.cat([found[f"{stem}.{side}_proj.{leaf}"] for side in "qkv"])
                tensors[f"{place}attn.in_proj_{leaf}"] = joined
            else:
                tensors[place + _OPEN_CLIP[".".join(words[3:-1])] + f".{words[-1]}"] = tensor
        elif name == "text_projection.weight":
            tensors["text_projection"] = tensor.T
        elif words[0] == "final_layer_norm":
            tensors[f"ln_final.{words[-1]}"] = tensor
        else:
            place = "token_embedding.weight" if words[1] == "token_embedding" else "positional_embedding"
            tensors[place] = tensor
    return tensors


def scaled_fp8(tensors: Tensors, *, scale: str = "scale_weight", per_channel: bool = False) -> tuple[Tensors, Tensors]:
    """Every matrix as fp8 with a scale beside it, as ComfyUI writes them; and what that stands for, in float32."""
    packed: Tensors = {}
    plain: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not name.endswith(".weight"):
            packed[name] = plain[name] = tensor
            continue
        largest = tensor.abs().amax(dim=1, keepdim=True) if per_channel else tensor.abs().max()
        factor = (largest / 448).clamp(min=1e-12).float()
        packed[name] = (tensor / factor).to(torch.float8_e4m3fn)
        packed[f"{name.removesuffix('.weight')}.{scale}"] = factor
        plain[name] = packed[name].float() * factor
    return packed, plain


def gguf(tensors: Tensors, path: str | Path, architecture: str, kind: str = "Q8_0", *, folded: bool = False) -> Path:
    """Write tensors as GGUF: matrices with rows of whole blocks as `kind`, all others as they are.

    `folded`, as ComfyUI-GGUF writes them: weights of which 256 divides the size and not the rows become rows of 256,
    and their shapes are noted.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    quantized = GGMLQuantizationType[kind]
    writer = GGUFWriter(str(path), architecture)
    for name, tensor in tensors.items():
        array = tensor.float().contiguous().numpy()
        if folded and array.ndim > 1 and array.size % 256 == 0 and array.shape[-1] % 256:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in array.shape])
            array = array.reshape(-1, 256)
        # Of bfloat16, whose blocks are single numbers, such files hold everything.
        whole = array.ndim == 2 and name.endswith(".weight") and array.shape[-1] % GGML_QUANT_SIZES[quantized][0] == 0
        if whole or (kind == "BF16" and array.ndim > 1):
            writer.add_tensor(name, quantize(array, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def config_of(folder: str | Path, target: str | Path) -> Path:
    """Copy what a pipeline says of itself, and not one weight: what a bundled config is to a published model."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return Path(target)


def weights(folder: Path) -> Tensors:
    """The weights of one saved component."""
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def save(tensors: Tensors, path: str | Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"} | (metadata or {})
    )
    return path


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


_OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LDM_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def ldm_unet_name(name: str, layers: int, names: Iterable[str]) -> str:
    """The original name of a UNet's tensor; `names` are all of them, which tells where upsamplers follow attention."""
    stem, _, leaf = name.rpartition(".")
    if stem in _LDM_UNET_TOP:
        return f"{_LDM_UNET_TOP[stem]}.{leaf}"
    words = name.split(".")
    if words[0] == "mid_block":
        kind, index, rest = words[1], int(words[2]), words[3:]
        place = f"middle_block.{2 * index + (kind == 'attentions')}"
    else:
        side, block, kind, index, rest = words[0], int(words[1]), words[2], int(words[3]), words[4:]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest[1]}"
        if kind == "upsamplers":
            # after the attention where the block has one
            attention = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
            return f"output_blocks.{block * (layers + 1) + layers}.{1 + attention}.conv.{rest[1]}"
        down = f"input_blocks.{1 + block * (layers + 1) + index}"
        up = f"output_blocks.{block * (layers + 1) + index}"
        place = f"{down if side == 'down_blocks' else up}.{int(kind == 'attentions')}"
    if kind == "resnets":
        rest = [_LDM_RESNET[rest[0]], *rest[1:]]
    return ".".join([place, *rest])


def _ldm_vae_name(name: str, blocks: int) -> str:
    words = name.split(".")
    if len(words) < 4:
        return name.replace("conv_norm_out", "norm_out")
    if words[1] == "mid_block":
        index = int(words[3]) + 1
        if words[2] == "resnets":
            return f"{words[0]}.mid.block_{index}.{'.'.join(words[4:])}"
        ending = ".".join(words[4:]).replace("group_norm", "norm").replace("to_out.0", "proj_out")
        return f"{words[0]}.mid.attn_{index}.{ending.replace('to_', '')}"
    side, block = ("down", int(words[2])) if words[1] == "down_blocks" else ("up", blocks - 1 - int(words[2]))
    if words[3] == "resnets":
        ending = ".".join(words[5:]).replace("conv_shortcut", "nin_shortcut")
        return f"{words[0]}.{side}.{block}.block.{words[4]}.{ending}"
    return f"{words[0]}.{side}.{block}.{side}sample.conv.{words[-1]}"


def _turned(tensor: torch.Tensor) -> torch.Tensor:
    """Shift before scale, where diffusers has scale before shift."""
    scale, shift = tensor.chunk(2)
    return torch.cat([shift, scale])


_SD3_TOP = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
_SD3_BLOCK = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_QKV = {
    "attn.to_q": ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    "attn.add_q_proj": ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "attn2.to_q": ("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
}


def _sd3(found: Tensors, config: dict[str, object]) -> Tensors:
    tensors: Tensors = {"pos_embed": found["pos_embed.pos_embed"]}
    last = int(str(config["num_layers"])) - 1
    for name, tensor in found.items():
        stem, _, leaf = name.rpartition(".")
        words = stem.split(".", 2)
        if stem in _SD3_TOP:
            tensors[f"{_SD3_TOP[stem]}.{leaf}"] = tensor
        elif stem == "norm_out.linear":
            tensors[f"final_layer.adaLN_modulation.1.{leaf}"] = _turned(tensor)
        elif words[0] == "transformer_blocks" and words[2] in _SD3_QKV:
            place, sides = _SD3_QKV[words[2]]
            joined = torch.cat([found[f"transformer_blocks.{words[1]}.{side}.{leaf}"] for side in sides])
            tensors[f"joint_blocks.{words[1]}.{place}.{leaf}"] = joined
        elif words[0] == "transformer_blocks" and words[2] in _SD3_BLOCK:
            ends = words[2] == "norm1_context.linear" and int(words[1]) == last
            tensors[f"joint_blocks.{words[1]}.{_SD3_BLOCK[words[2]]}.{leaf}"] = _turned(tensor) if ends else tensor
    return tensors


_FLUX_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_FLUX_QKV = {
    "attn.to_q": ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    "attn.add_q_proj": ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
}
_FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}


def _flux(found: Tensors, config: dict[str, object]) -> Tensors:
    tensors: Tensors = {}
    for name, tensor in found.items():
        stem, _, leaf = name.rpartition(".")
        words = stem.split(".", 2)
        if stem in _FLUX_TOP:
            tensors[f"{_FLUX_TOP[stem]}.{leaf}"] = tensor
        elif stem == "norm_out.linear":
            tensors[f"final_layer.adaLN_modulation.1.{leaf}"] = _turned(tensor)
        elif words[0] == "transformer_blocks":
            block = f"double_blocks.{words[1]}"
            if words[2] in _FLUX_DOUBLE:
                tensors[f"{block}.{_FLUX_DOUBLE[words[2]]}.{leaf}"] = tensor
            elif words[2] in _FLUX_NORMS:
                tensors[f"{block}.{_FLUX_NORMS[words[2]]}.scale"] = tensor
            elif words[2] in _FLUX_QKV:
                place, sides = _FLUX_QKV[words[2]]
                joined = torch.cat([found[f"transformer_blocks.{words[1]}.{side}.{leaf}"] for side in sides])
                tensors[f"{block}.{place}.{leaf}"] = joined
        elif words[0] == "single_transformer_blocks":
            block = f"single_blocks.{words[1]}"
            if words[2] in _FLUX_SINGLE:
                tensors[f"{block}.{_FLUX_SINGLE[words[2]]}.{leaf}"] = tensor
            elif words[2] in ("attn.norm_q", "attn.norm_k"):
                tensors[f"{block}.norm.{'query' if words[2].endswith('q') else 'key'}_norm.scale"] = tensor
            elif words[2] == "attn.to_q":
                sides = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                place = f"single_transformer_blocks.{words[1]}"
                tensors[f"{block}.linear1.{leaf}"] = torch.cat([found[f"{place}.{side}.{leaf}"] for side in sides])
    return tensors
