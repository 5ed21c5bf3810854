"""Writing of the finished diffusers folder, and of the single-file version of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tools.demo_model.denoiser import averaged_denoiser
from tools.demo_model.things import THINGS
from tools.demo_model.vocabulary import load_tokenizer

_TEXT_PREFIX = "text_model."
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
_RIM = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def assemble(work: Path, folder: Path) -> int:
    """Write the newest checkpoint as a pipeline folder of fp16 safetensors; returns its size in bytes."""
    model, scale = averaged_denoiser(work)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    vae.register_to_config(scaling_factor=round(scale, 6))
    tokenizer = load_tokenizer(work / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder, tokenizer=tokenizer, unet=model.unet, scheduler=model.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16)
    for part in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _prefix_text_keys(folder / "text_encoder" / "model.safetensors")
    for part in ("vae", "text_encoder", "unet", "scheduler"):
        _forget_origin(folder / part)
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for name in _TOKENIZER_FILES:
        shutil.copy(work / "tokenizer" / name, folder / "tokenizer" / name)
    # What the worker tells a caller whose prompt names nothing of it.
    (folder / "subjects.txt").write_text("".join(f"{name}\n" for thing in THINGS for name in thing.names))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _forget_origin(part: Path) -> None:
    """Drop the path that a part was once loaded from, and make its files readable by all."""
    for path in part.glob("*"):
        path.chmod(0o644)
        if path.suffix == ".json":
            settings = json.loads(path.read_text())
            settings.pop("_name_or_path", None)
            path.write_text(json.dumps(settings, indent=2) + "\n")


def _prefix_text_keys(path: Path) -> None:
    """Give the text encoder's keys the ``text_model.`` that every release of transformers understands."""
    weights = load_file(path)
    if not any(key.startswith(_TEXT_PREFIX) for key in weights):
        save_file({_TEXT_PREFIX + key: value for key, value in weights.items()}, path, metadata={"format": "pt"})


def original_unet_key(key: str, layers: int, up_types: list[str]) -> str:
    """Translate a diffusers UNet key to the original latent-diffusion layout, for any number of blocks."""
    for mine, theirs in _RIM.items():
        if key.startswith(mine + "."):
            return theirs + key[len(mine) :]
    words = key.split(".")
    if words[0] == "mid_block":
        if words[1] == "attentions":
            return ".".join(["middle_block", "1", *words[3:]])
        return ".".join(["middle_block", str(2 * int(words[2])), _RESNET[words[3]], *words[4:]])
    block, kind, layer = int(words[1]), words[2], int(words[3])
    down = words[0] == "down_blocks"
    side = "input_blocks" if down else "output_blocks"
    first = (layers + 1) * block + (1 if down else 0)
    if kind == "resnets":
        return ".".join([side, str(first + layer), "0", _RESNET[words[4]], *words[5:]])
    if kind == "attentions":
        return ".".join([side, str(first + layer), "1", *words[4:]])
    if kind == "downsamplers":
        return ".".join([side, str((layers + 1) * (block + 1)), "0", "op", words[-1]])
    place = "2" if up_types[block].startswith("CrossAttn") else "1"
    return ".".join([side, str(first + layers), place, "conv", words[-1]])


def original_vae_key(key: str, blocks: int) -> str:
    """Translate a diffusers autoencoder key to the original latent-diffusion layout."""
    words = key.split(".")
    if len(words) < 4 or words[1] in ("conv_in", "conv_out", "conv_norm_out"):
        return key.replace("conv_norm_out", "norm_out")
    half, part = words[0], words[1]
    if part == "mid_block":
        return ".".join([half, "mid", f"block_{int(words[3]) + 1}", *words[4:]])
    block = int(words[2])
    path = [half, "down", str(block)] if part == "down_blocks" else [half, "up", str(blocks - 1 - block)]
    if words[3] == "resnets":
        return ".".join([*path, "block", *words[4:]]).replace("conv_shortcut", "nin_shortcut")
    return ".".join([*path, "downsample" if half == "encoder" else "upsample", *words[5:]])


def write_single_file(folder: Path, path: Path) -> None:
    """Write the pipeline in ``folder`` as one checkpoint in the original layout."""
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    weights = {}
    for key, value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        name = original_unet_key(key, unet["layers_per_block"], unet["up_block_types"])
        weights["model.diffusion_model." + name] = value
    for key, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        weights["first_stage_model." + original_vae_key(key, len(vae["block_out_channels"]))] = value
    for key, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        weights["cond_stage_model.transformer." + key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
