"""Tiny random pipelines and LoRAs: real diffusers folders that run on one CPU thread in under a second.

Every builder is a plain function with a fixed seed: the same call writes the same bytes. The weights are random, but
scaled on purpose: an untrained network ignores its prompt and paints flat grey, and a test that compares images of
two prompts would then prove nothing.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

torch.set_num_threads(1)

Build = TypeVar("Build", bound=Callable[..., Path])
Dialect = Literal["diffusers", "kohya"]

WIDTH = 32
"""Width of every text encoder, and so of every cross attention."""


def private_rng(build: Build) -> Build:
    """Give a builder its own random state, so that building a model leaves a test's own seed alone."""

    @functools.wraps(build)
    def built(folder: str | Path, **options: int) -> Path:
        with torch.random.fork_rng(devices=[]):
            return build(folder, **options)

    return built  # type: ignore[return-value]


@private_rng
def tiny_sd1(folder: str | Path, *, seed: int = 0) -> Path:
    """Save a Stable Diffusion 1 pipeline (64 px by default, sides in multiples of 16) and return its folder."""
    scheduler = DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return _stable_diffusion(StableDiffusionPipeline, folder, seed, scheduler)


@private_rng
def tiny_pix2pix(folder: str | Path, *, seed: int = 1) -> Path:
    """Save an InstructPix2Pix pipeline (edits an image by an instruction) and return its folder."""
    scheduler = EulerAncestralDiscreteScheduler(**SD_BETAS, steps_offset=1)
    return _stable_diffusion(StableDiffusionInstructPix2PixPipeline, folder, seed, scheduler, in_channels=8)


@private_rng
def tiny_sdxl(folder: str | Path, *, seed: int = 2) -> Path:
    """Save a Stable Diffusion XL pipeline (two text encoders, 64 px by default) and return its folder."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,  # six time ids of 8 each, and the pooled text
        ),
        scheduler=EulerDiscreteScheduler(**SD_BETAS, steps_offset=1),
        add_watermarker=False,
    )
    return _save(pipeline, folder)


@private_rng
def tiny_sd3(folder: str | Path, *, seed: int = 3) -> Path:
    """Save a Stable Diffusion 3 pipeline (two CLIP encoders and a T5) and return its folder."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        # of 3.5 medium: normed queries and keys, and a second attention in the first blocks
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    ).eval()
    enliven(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()).eval(),
        tokenizer_2=clip_tokenizer(),
        # Stable Diffusion 3 pads the two CLIP embeddings side by side to the width of the T5
        text_encoder_3=T5EncoderModel(t5_config(width=2 * WIDTH)).eval(),
        tokenizer_3=t5_tokenizer(),
    )
    return _save(pipeline, folder)


@private_rng
def tiny_flux(folder: str | Path, *, seed: int = 4) -> Path:
    """Save a FLUX.1 pipeline (CLIP and T5, packed latents; sides in multiples of 16) and return its folder."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()
    enliven(transformer, factor=12.0)
    # Tokens are normalised: beside a bias their length, which is what a word's weight changes, is seen.
    transformer.context_embedder.bias.data.mul_(80)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5_config()).eval(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    return _save(pipeline, folder)


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer of 514 tokens: each byte alone and as a word's end, no merges, and two specials."""
    units = list(byte_units().values())
    tokens = [*units, *(f"{unit}</w>" for unit in units), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer whose pieces are single characters, printable ASCII."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


def lora_for(
    folder: str | Path,
    path: str | Path,
    *,
    rank: int = 4,
    alpha: float | None = None,
    dialect: Dialect = "diffusers",
    seed: int = 0,
) -> Path:
    """Write a random LoRA that fits the attention layers of a saved pipeline and visibly changes its image.

    ``alpha`` is the trained scale (``alpha / rank`` multiplies the change); left out, it equals the rank. The dialects
    hold the same numbers for the same seed, so both must give the same image. ``kohya`` is for UNet pipelines only.
    """
    part = "unet" if (Path(folder) / "unet").is_dir() else "transformer"
    if dialect == "kohya" and part != "unet":
        raise ValueError("the kohya layout of a transformer is not written here")
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (out_features, in_features) in _attention_layers(Path(folder) / part):
        down = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        up = torch.randn(out_features, rank, generator=generator) / rank**0.5
        if dialect == "kohya":
            stem = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(float(rank if alpha is None else alpha))
        else:
            tensors |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    return _save_lora(tensors, Path(path), part, rank, alpha, dialect)


# --- parts ---------------------------------------------------------------------------------------------------------

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _stable_diffusion(
    pipeline: Callable[..., object], folder: str | Path, seed: int, scheduler: object, in_channels: int = 4
) -> Path:
    torch.manual_seed(seed)
    parts = {"vae": vae(), "text_encoder": CLIPTextModel(clip_config()).eval(), "tokenizer": clip_tokenizer()}
    parts |= {"unet": unet(in_channels=in_channels), "scheduler": scheduler}
    no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return _save(pipeline(**parts, **no_checker), folder)


def unet(**changes: object) -> UNet2DConditionModel:
    """Return a UNet of two levels over 8x8 latents; keyword arguments change its config."""
    config: dict[str, object] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    network = UNet2DConditionModel(**(config | changes)).eval()
    enliven(network)
    return network


def enliven(model: torch.nn.Module, factor: float = 3.0) -> None:
    """Scale up what carries the prompt into the image."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("weight") or weight.ndim < 2:
                continue
            if "attn2.to_" in name or ".attn.add_" in name or "context_embedder" in name or "add_embedding" in name:
                weight.mul_(factor)


def enliven_control(control: torch.nn.Module) -> torch.nn.Module:
    """Give what a ControlNet starts at zero, and what reads its image, so much weight that a few steps show it."""
    for name, weight in control.named_parameters():
        if weight.ndim > 1 and (name.startswith(("controlnet_", "control_")) or not weight.any()):
            torch.nn.init.normal_(weight, std=0.3)
    return control


def enliven_saved(folder: Path, *, attention: float = 5.0, latents: float = 1.0) -> None:
    """Scale up what carries prompts and images into the image of a saved pipeline that hardly listens to them.

    `attention` is for what tokens see of one another, `latents` for what a VAE makes of an image.
    """
    factors = {
        "transformer": ((".to_", attention), ("proj_out.weight", 5.0)),
        "prior_prior": ((".to_", 6.0), ("clip_", 10.0)),
        "decoder": (("effnet_mapper", 5.0),),
        "vae": (("quant_conv.weight", latents),),
    }
    for part, scaled in factors.items():
        for path in (folder / part).glob("*.safetensors"):
            tensors = load_file(path)
            for name, tensor in tensors.items():
                if tensor.ndim > 1:
                    tensor *= next((factor for text, factor in scaled if text in name and "post" not in name), 1.0)
            save_file(tensors, path, metadata={"format": "pt"})


def vae(**changes: object) -> AutoencoderKL:
    """Return a KL autoencoder that shrinks eight times to four channels; keyword arguments change its config."""
    config: dict[str, object] = {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    autoencoder = AutoencoderKL(**(config | changes)).eval()
    autoencoder.decoder.conv_out.weight.data.mul_(2.0)  # contrast: an untrained decoder paints almost plain grey
    return autoencoder


def clip_config(**changes: object) -> CLIPTextConfig:
    """Return the config of a CLIP text encoder that fits `clip_tokenizer`."""
    config: dict[str, object] = {"vocab_size": 514, "max_position_embeddings": 77}
    config |= {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config |= {"hidden_size": WIDTH, "projection_dim": WIDTH, "intermediate_size": 64}
    config |= {"num_hidden_layers": 3, "num_attention_heads": 4}
    return CLIPTextConfig(**(config | changes))


def t5_config(width: int = WIDTH) -> T5Config:
    """Return the config of a T5 encoder that fits `t5_tokenizer`."""
    return T5Config(vocab_size=98, d_model=width, d_ff=64, d_kv=8, num_heads=4, num_layers=2, dropout_rate=0.0)


def byte_units() -> dict[int, str]:
    """Return the printable character CLIP and GPT-2 write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _save(pipeline: object, folder: str | Path) -> Path:
    save: Callable[..., object] = pipeline.save_pretrained  # type: ignore[attr-defined]
    save(folder, safe_serialization=True)
    return Path(folder)


def _attention_layers(part: Path) -> list[tuple[str, list[int]]]:
    """Return name and shape of every q, k, v and out projection, in a fixed order, without reading the weights."""
    endings = tuple(f".to_{end}.weight" for end in ("q", "k", "v", "out.0"))
    with safe_open(part / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        names = sorted(name for name in file.keys() if name.endswith(endings))  # noqa: SIM118
        return [(name.removesuffix(".weight"), file.get_slice(name).get_shape()) for name in names]


def _save_lora(
    tensors: dict[str, torch.Tensor], path: Path, part: str, rank: int, alpha: float | None, dialect: Dialect
) -> Path:
    metadata = {"format": "pt"}
    if dialect == "kohya":
        metadata |= {"ss_network_dim": str(rank), "ss_network_alpha": str(rank if alpha is None else alpha)}
    elif alpha is not None:
        # peft keeps the scale beside the tensors: diffusers writes it into the header
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        adapter = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "lora_bias": False, "use_dora": False}
        adapter |= {"alpha_pattern": {}, "rank_pattern": {}}
        metadata["lora_adapter_metadata"] = json.dumps({f"{part}.{key}": value for key, value in adapter.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path
