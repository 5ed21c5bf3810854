"""Tiny IP-Adapters of every layout, with the image encoders that they read, for the tiny pipelines of `builders`."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

HIDDEN, PROJECTED, TOKENS = 32, 24, 4
Tensors = dict[str, Tensor]


def clip_encoder(folder: Path, *, projected: int = PROJECTED, seed: int = 0) -> Path:
    """Save a tiny CLIP vision model and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=64,
            projection_dim=projected,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def siglip_encoder(folder: Path) -> Path:
    """Save a tiny SigLIP vision model and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = SiglipVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
        SiglipVisionModel(config).save_pretrained(folder)
    return folder


class Numbers:
    """Random tensors that depend on the seed alone."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * scale / (shape[-1] ** 0.5)


def unet_adapter(pipeline: Path, *, layout: str = "plain", seed: int = 0, projected: int = PROJECTED) -> Tensors:
    """The tensors of an adapter for the saved pipeline's UNet: plain, plus or full-face."""
    unet = DiffusionPipeline.from_pretrained(pipeline).unet
    draw = Numbers(seed)
    width = unet.config.cross_attention_dim
    found: Tensors = {}
    at = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor") and "motion_modules" not in name:
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            found |= {f"ip_adapter.{at}.to_{side}_ip.weight": draw(hidden, width, scale=3.0) for side in "kv"}
            at += 2
    return found | projection(layout, width, draw, projected)


def projection(layout: str, width: int, draw: Numbers, projected: int = PROJECTED) -> Tensors:
    """The tensors that turn an encoder's answer into tokens of `width`."""
    if layout == "plain":
        found = {"proj.weight": draw(TOKENS * width, projected, scale=3.0), "proj.bias": draw(TOKENS * width)}
        found |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    elif layout == "full-face":
        found = {"proj.0.weight": draw(HIDDEN, HIDDEN), "proj.0.bias": draw(HIDDEN)}
        found |= {"proj.2.weight": draw(width, HIDDEN), "proj.2.bias": draw(width)}
        found |= {"proj.3.weight": torch.ones(width), "proj.3.bias": torch.zeros(width)}
    else:
        inner = 64
        found = {"latents": draw(1, TOKENS, inner), "proj_in.weight": draw(inner, HIDDEN), "proj_in.bias": draw(inner)}
        found |= {"proj_out.weight": draw(width, inner), "proj_out.bias": draw(width)}
        found |= {"norm_out.weight": torch.ones(width), "norm_out.bias": torch.zeros(width)}
        for layer in range(4):
            one, two = f"layers.{layer}.0", f"layers.{layer}.1"
            for norm in ("norm1", "norm2"):
                found |= {f"{one}.{norm}.weight": torch.ones(inner), f"{one}.{norm}.bias": torch.zeros(inner)}
            found |= {f"{one}.to_q.weight": draw(64, inner), f"{one}.to_kv.weight": draw(128, inner)}
            found |= {f"{one}.to_out.weight": draw(inner, 64)}
            found |= {f"{two}.0.weight": torch.ones(inner), f"{two}.0.bias": torch.zeros(inner)}
            found |= {f"{two}.1.weight": draw(4 * inner, inner), f"{two}.3.weight": draw(inner, 4 * inner)}
    return {f"image_proj.{name}": tensor for name, tensor in found.items()}


def flux_adapter(pipeline: Path, *, layout: str = "plain", seed: int = 0) -> Tensors:
    """The tensors of an adapter for the saved pipeline's FLUX transformer, in diffusers' or XLabs' names."""
    transformer = DiffusionPipeline.from_pretrained(pipeline).transformer
    draw = Numbers(seed)
    width, hidden = transformer.config.joint_attention_dim, transformer.inner_dim
    found: Tensors = {}
    for at in range(transformer.config.num_layers):
        for side in "kv":
            stem = f"ip_adapter.{at}.to_{side}_ip"
            if layout == "xlabs":
                stem = f"double_blocks.{at}.processor.ip_adapter_double_stream_{side}_proj"
            found |= {f"{stem}.weight": draw(hidden, width, scale=3.0), f"{stem}.bias": draw(hidden)}
    tokens = projection("plain", width, draw)
    if layout == "xlabs":
        tokens = {name.replace("image_proj.", "ip_adapter_proj_model."): tensor for name, tensor in tokens.items()}
    return found | tokens


def sd3_adapter(pipeline: Path, *, seed: int = 0) -> Tensors:
    """The tensors of an adapter for the saved pipeline's Stable Diffusion 3 transformer."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    transformer = DiffusionPipeline.from_pretrained(pipeline).transformer
    heads = transformer.config.attention_head_dim
    hidden = heads * transformer.config.num_attention_heads
    draw, inner = Numbers(seed), 64
    image_proj = IPAdapterTimeImageProjection(
        embed_dim=HIDDEN, output_dim=hidden, hidden_dim=inner, heads=1, num_queries=TOKENS, timestep_in_dim=32
    )
    processor = SD3IPAdapterJointAttnProcessor2_0(hidden, hidden, heads, inner)
    found = {f"image_proj.{name}": _lively(name, tensor, draw) for name, tensor in image_proj.state_dict().items()}
    for at in range(len(transformer.attn_processors)):
        found |= {
            f"ip_adapter.{at}.{name}": _lively(name, tensor, draw) for name, tensor in processor.state_dict().items()
        }
    return found


def _lively(name: str, tensor: Tensor, draw: Numbers) -> Tensor:
    return draw(*tensor.shape) if tensor.ndim > 1 else torch.ones_like(tensor) if "weight" in name else tensor.clone()


def save(tensors: Tensors, path: Path) -> Path:
    """Write an adapter's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    return path
