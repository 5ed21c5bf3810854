"""Tiny random pipelines for tasks beyond text-to-image; built like those of tests.builders, of the same parts."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DModel,
)
from transformers import T5EncoderModel

from tests import builders


def _parts(folder: Path) -> dict[str, object]:
    return DiffusionPipeline.from_pretrained(folder, safety_checker=None).components


def kontext(flux: Path, folder: Path) -> Path:
    """Save the parts of a tiny FLUX.1 as FLUX.1 Kontext."""
    FluxKontextPipeline(**_parts(flux)).save_pretrained(folder)
    builders.enliven_saved(folder, attention=20.0)
    return folder


@builders.private_rng
def fill(folder: str | Path, *, flux: Path) -> Path:
    """Save a FLUX.1 Fill: the parts of `flux` and a transformer that also sees the image and its mask."""
    torch.manual_seed(11)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16 + 16 + 64 * 4,  # latents, the image's latents, and the mask of each latent's pixels
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=builders.WIDTH,
        pooled_projection_dim=builders.WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()
    parts = {name: part for name, part in _parts(flux).items() if name not in ("image_encoder", "feature_extractor")}
    FluxFillPipeline(**parts | {"transformer": transformer}).save_pretrained(folder)
    return Path(folder)


@builders.private_rng
def controlnet(folder: str | Path, *, sd1: Path) -> Path:
    """Save a Stable Diffusion 1 with a ControlNet of its own."""
    torch.manual_seed(12)
    parts = _parts(sd1)
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 8, 16, 16)).eval()
    builders.enliven_control(net)
    names = {name: part for name, part in parts.items() if name != "image_encoder"}
    StableDiffusionControlNetPipeline(**names, controlnet=net, requires_safety_checker=False).save_pretrained(folder)
    return Path(folder)


@builders.private_rng
def upscaler(folder: str | Path, *, sd1: Path) -> Path:
    """Save a fourfold upscaler: a UNet that sees the small image beside the latents."""
    torch.manual_seed(13)
    parts = _parts(sd1)
    StableDiffusionUpscalePipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
        ).eval(),
        text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"],
        unet=builders.unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(),
        max_noise_level=350,
    ).save_pretrained(folder)
    return Path(folder)


@builders.private_rng
def refiner(folder: str | Path, *, sdxl: Path) -> Path:
    """Save an SDXL refiner: one text encoder, and an aesthetic score in place of the target size."""
    torch.manual_seed(16)
    parts = _parts(sdxl)
    StableDiffusionXLImg2ImgPipeline(
        vae=parts["vae"],
        text_encoder=None,
        text_encoder_2=parts["text_encoder_2"],
        tokenizer=None,
        tokenizer_2=parts["tokenizer_2"],
        unet=builders.unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=5 * 8 + builders.WIDTH,
        ),
        scheduler=parts["scheduler"],
        requires_aesthetics_score=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    return Path(folder)


@builders.private_rng
def cogvideox(folder: str | Path, *, seed: int = 14, from_video: int = 0) -> Path:
    """Save a CogVideoX, one that starts from text or from a video: 4 frames and 8 pixels make one latent."""
    torch.manual_seed(seed)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=builders.WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=226,
    ).eval()
    cls = CogVideoXVideoToVideoPipeline if from_video else CogVideoXPipeline
    cls(
        tokenizer=builders.t5_tokenizer(),
        text_encoder=T5EncoderModel(builders.t5_config()).eval(),
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    ).save_pretrained(folder)
    return Path(folder)


@builders.private_rng
def unconditional(folder: str | Path, *, seed: int = 15) -> Path:
    """Save a DDIM pipeline, which reads no words and takes no callback."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    DDIMPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder)
    return Path(folder)
