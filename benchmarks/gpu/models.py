"""The models: real sizes from the configs in the package, random weights, no download and no text encoder."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

CONFIGS = Path(__file__).resolve().parents[2] / "worker/catalog/configs"
_TINY_VAE = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 8, "layers_per_block": 1}
_TINY_FLUX = {"num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 32, "num_layers": 1}


@dataclass(frozen=True)
class Model:
    """One model. `tiny` are the config's values of a size that a CPU runs in a moment; `tokens` those of a prompt."""

    name: str
    pipeline: str
    part: str
    cls: str
    config: str
    vae: tuple[str, str | None]
    steps: int
    tokens: int
    embeds: Callable[["Model", Any, int], dict[str, Any]]
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_vae: Mapping[str, Any] = field(default_factory=lambda: _TINY_VAE)
    options: Mapping[str, Any] = field(default_factory=dict)


def random(*shape: int) -> torch.Tensor:
    """Numbers as an encoder gives them, on the device and in the dtype of the context."""
    return torch.randn(*shape)


def _sdxl(model: Model, pipe: Any, count: int) -> dict[str, Any]:
    width = pipe.unet.config.cross_attention_dim
    pooled = pipe.unet.config.projection_class_embeddings_input_dim - 6 * pipe.unet.config.addition_time_embed_dim
    names = ("prompt_embeds", "negative_prompt_embeds"), ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: random(count, model.tokens, width) for name in names[0]} | {
        name: random(count, pooled) for name in names[1]
    }


def _flux(model: Model, pipe: Any, count: int) -> dict[str, Any]:
    config = pipe.transformer.config
    return {
        "prompt_embeds": random(count, model.tokens, config.joint_attention_dim),
        "pooled_prompt_embeds": random(count, config.pooled_projection_dim),
    }


def _klein(model: Model, pipe: Any, count: int) -> dict[str, Any]:
    return {
        "prompt_embeds": random(count, model.tokens, pipe.transformer.config.joint_attention_dim),
        "guidance_scale": 1.0,
    }


def _qwen(model: Model, pipe: Any, count: int) -> dict[str, Any]:
    width = pipe.transformer.config.joint_attention_dim
    mask = torch.ones(count, model.tokens, dtype=torch.long)
    embeds = {f"{kind}prompt_embeds": random(count, model.tokens, width) for kind in ("", "negative_")}
    return embeds | {"prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask, "true_cfg_scale": 4.0}


def _z_image(model: Model, pipe: Any, count: int) -> dict[str, Any]:
    width = pipe.transformer.config.cap_feat_dim
    return {"prompt_embeds": [random(model.tokens, width) for _ in range(count)], "guidance_scale": 0.0}


# THE TABLE, in the order in which they are measured.
MODELS: tuple[Model, ...] = (
    Model(
        "sdxl",
        "StableDiffusionXLPipeline",
        "unet",
        "UNet2DConditionModel",
        "sdxl/unet",
        ("AutoencoderKL", "sdxl/vae"),
        30,
        77,
        _sdxl,
        scheduler="EulerDiscreteScheduler",
        tiny={
            "block_out_channels": [8, 16, 16],
            "attention_head_dim": [1, 2, 2],
            "transformer_layers_per_block": [1, 1, 1],
            "cross_attention_dim": 32,
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,
        },
    ),
    Model(
        "flux1-dev",
        "FluxPipeline",
        "transformer",
        "FluxTransformer2DModel",
        "flux1/transformer",
        ("AutoencoderKL", "flux1/vae"),
        28,
        512,
        _flux,
        tiny=_TINY_FLUX | {"num_single_layers": 1, "pooled_projection_dim": 32, "axes_dims_rope": [4, 4, 8]},
    ),
    Model(
        "flux2-klein",
        "Flux2KleinPipeline",
        "transformer",
        "Flux2Transformer2DModel",
        "flux2-klein/transformer",
        ("AutoencoderKLFlux2", None),
        4,
        512,
        _klein,
        tiny=_TINY_FLUX | {"num_single_layers": 1, "axes_dims_rope": [4, 4, 4, 4], "timestep_guidance_channels": 16},
        options={"is_distilled": True},
    ),
    Model(
        "z-image-turbo",
        "ZImagePipeline",
        "transformer",
        "ZImageTransformer2DModel",
        "z-image/transformer",
        ("AutoencoderKL", "z-image/vae"),
        9,
        256,
        _z_image,
        tiny={
            "dim": 32,
            "n_heads": 2,
            "n_kv_heads": 2,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "cap_feat_dim": 32,
            "axes_dims": [4, 6, 6],
        },
    ),
    Model(
        "qwen-image",
        "QwenImagePipeline",
        "transformer",
        "QwenImageTransformer2DModel",
        "qwen-image/transformer",
        ("AutoencoderKLQwenImage", None),
        50,
        256,
        _qwen,
        tiny=_TINY_FLUX | {"axes_dims_rope": [4, 4, 8]},
        tiny_vae={"base_dim": 8, "num_res_blocks": 1},
    ),
)


@contextmanager
def on_device(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Make modules and tensors on `device` in `dtype`, straight away: no copy of 40 GB in the machine's memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(model: Model, device: str, dtype: torch.dtype, *, tiny: bool) -> Any:
    """Return the pipeline. Its weights are drawn as torch draws new layers: never zeros, which are faster."""
    config = _config(model.config) | (model.tiny if tiny else {})
    vae_class, vae_config = model.vae
    vae = (_config(vae_config) if vae_config else {}) | (model.tiny_vae if tiny else {})
    cls = getattr(diffusers, model.pipeline)
    with on_device(device, dtype), torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            model.part: getattr(diffusers, model.cls).from_config(config).eval(),
            "vae": getattr(diffusers, vae_class).from_config(vae).eval(),
        }
    scheduler = getattr(diffusers, model.scheduler)()
    missing = {name: None for name in cls._get_signature_keys(cls)[0] if name not in {*parts, "scheduler"}}
    pipe = cls(**{**missing, **parts, "scheduler": scheduler}, **model.options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(model: Model, pipe: Any, *, size: int, steps: int, count: int, device: str, dtype: torch.dtype) -> Any:
    """Return the pixels of one call for `count` prompts."""
    with on_device(device, dtype), torch.random.fork_rng():
        torch.manual_seed(1)
        embeds = model.embeds(model, pipe, count)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(count)]
    with torch.no_grad():
        output = pipe(
            **embeds, height=size, width=size, num_inference_steps=steps, generator=generators, output_type="np"
        )
    return output.images


def _config(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / name / "config.json").read_text())
    return {key: value for key, value in content.items() if not key.startswith("_")}
