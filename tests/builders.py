"""Tiny random pipelines, LoRAs and single files: real diffusers folders that run on one CPU thread in under a second.

Every builder is a plain function with a fixed seed: the same call writes the same bytes. The weights are random, but
scaled on purpose: an untrained network ignores its prompt and paints flat grey, and a test that compares pictures of
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


def _private_rng(build: Build) -> Build:
    """Give a builder its own random state, so that building a model leaves a test's own seed alone."""

    @functools.wraps(build)
    def built(folder: str | Path, **options: int) -> Path:
        with torch.random.fork_rng(devices=[]):
            return build(folder, **options)

    return built  # type: ignore[return-value]


@_private_rng
def tiny_sd1(folder: str | Path, *, seed: int = 0) -> Path:
    """Save a Stable Diffusion 1 pipeline (64 px by default, sides in multiples of 16) and return its folder."""
    scheduler = DDIMScheduler(**_SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return _stable_diffusion(StableDiffusionPipeline, folder, seed, scheduler)


@_private_rng
def tiny_pix2pix(folder: str | Path, *, seed: int = 1) -> Path:
    """Save an InstructPix2Pix pipeline (edits an image by an instruction) and return its folder."""
    scheduler = EulerAncestralDiscreteScheduler(**_SD_BETAS, steps_offset=1)
    return _stable_diffusion(StableDiffusionInstructPix2PixPipeline, folder, seed, scheduler, in_channels=8)


@_private_rng
def tiny_sdxl(folder: str | Path, *, seed: int = 2) -> Path:
    """Save a Stable Diffusion XL pipeline (two text encoders, 64 px by default) and return its folder."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,  # six time ids of 8 each, and the pooled text
        ),
        scheduler=EulerDiscreteScheduler(**_SD_BETAS, steps_offset=1),
        add_watermarker=False,
    )
    return _save(pipeline, folder)


@_private_rng
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
    ).eval()
    _enliven(transformer)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer_2=clip_tokenizer(),
        # Stable Diffusion 3 pads the two CLIP embeddings side by side to the width of the T5
        text_encoder_3=T5EncoderModel(_t5_config(width=2 * WIDTH)).eval(),
        tokenizer_3=t5_tokenizer(),
    )
    return _save(pipeline, folder)


@_private_rng
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
    _enliven(transformer, factor=12.0)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(_t5_config()).eval(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    return _save(pipeline, folder)


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer of 514 tokens: each byte alone and as a word's end, no merges, and two specials."""
    units = list(_byte_units().values())
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
    """Write a random LoRA that fits the attention layers of a saved pipeline and visibly changes its picture.

    ``alpha`` is the trained scale (``alpha / rank`` multiplies the change); left out, it equals the rank. The dialects
    hold the same numbers for the same seed, so both must give the same picture. ``kohya`` is for UNet pipelines only.
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


def single_file(folder: str | Path, path: str | Path) -> Path:
    """Write a saved Stable Diffusion 1 pipeline as one safetensors file in the original (LDM) key layout."""
    folder, path = Path(folder), Path(path)
    tensors: dict[str, torch.Tensor] = {}
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    layers = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"]
    for name, tensor in unet.items():
        tensors[f"model.diffusion_model.{_ldm_unet_name(name, layers)}"] = tensor
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    blocks = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    for name, tensor in vae.items():
        # the original VAE attention is made of 1x1 convolutions, that of diffusers of linear layers
        linear = ".attentions." in name and tensor.ndim == 2
        tensors[f"first_stage_model.{_ldm_vae_name(name, blocks)}"] = tensor[:, :, None, None] if linear else tensor
    for name, tensor in load_file(folder / "text_encoder" / "model.safetensors").items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return path


# --- parts ---------------------------------------------------------------------------------------------------------

_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _stable_diffusion(
    pipeline: Callable[..., object], folder: str | Path, seed: int, scheduler: object, in_channels: int = 4
) -> Path:
    torch.manual_seed(seed)
    parts = {"vae": _vae(), "text_encoder": CLIPTextModel(_clip_config()).eval(), "tokenizer": clip_tokenizer()}
    parts |= {"unet": _unet(in_channels=in_channels), "scheduler": scheduler}
    no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return _save(pipeline(**parts, **no_checker), folder)


def _unet(**changes: object) -> UNet2DConditionModel:
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
    unet = UNet2DConditionModel(**(config | changes)).eval()
    _enliven(unet)
    return unet


def _enliven(model: torch.nn.Module, factor: float = 3.0) -> None:
    """Scale up what carries the prompt into the picture."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("weight") or weight.ndim < 2:
                continue
            if "attn2.to_" in name or ".attn.add_" in name or "context_embedder" in name or "add_embedding" in name:
                weight.mul_(factor)


def _vae(**changes: object) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **changes,
    ).eval()
    vae.decoder.conv_out.weight.data.mul_(2.0)  # contrast: an untrained decoder paints almost plain grey
    return vae


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _t5_config(width: int = WIDTH) -> T5Config:
    return T5Config(vocab_size=98, d_model=width, d_ff=64, d_kv=8, num_heads=4, num_layers=2, dropout_rate=0.0)


def _byte_units() -> dict[int, str]:
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


_LDM_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
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


def _ldm_unet_name(name: str, layers: int) -> str:
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
            # after the attention where the block has one, so the number depends on the block
            return f"output_blocks.{block * (layers + 1) + layers}.{1 if block == 0 else 2}.conv.{rest[1]}"
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
