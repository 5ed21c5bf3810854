"""Tiny autoencoders beyond the plain one of `parts`: of videos, of packed latents, of deep compression.

Latents have four channels unless asked otherwise.
"""

from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
)

CHANNELS = 4


def flux2_vae() -> AutoencoderKLFlux2:
    """FLUX.2's: eight times smaller, and then packed two by two into sixteen channels."""
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=4
    ).eval()


def wan_vae(channels: int = CHANNELS, **changes: Any) -> AutoencoderKLWan:
    """Wan 2.1's: eight times smaller, of four frames one, and of the first frame one too."""
    return AutoencoderKLWan(**(_causal(channels) | changes)).eval()


def wan22_vae(channels: int = 48, **changes: Any) -> AutoencoderKLWan:
    """Wan 2.2's small one: sixteen times smaller, with residual shortcuts and pixels packed two by two."""
    sizes = _causal(channels) | {"in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True}
    return AutoencoderKLWan(**(sizes | {"decoder_base_dim": 4, "scale_factor_spatial": 16} | changes)).eval()


def qwen_vae(channels: int = CHANNELS, **changes: Any) -> AutoencoderKLQwenImage:
    """Qwen-Image's, which is Wan's design for single images."""
    return AutoencoderKLQwenImage(**(_causal(channels) | changes)).eval()


def qwen21_vae(channels: int = CHANNELS, **changes: Any) -> AutoencoderKLQwenImage21:
    """Qwen-Image 2.1's: sixteen times smaller, with residual shortcuts, in and out with transparency."""
    sizes = _causal(channels) | {
        "decoder_base_dim": 4,
        "dim_mult": [1, 1, 1, 1, 1],
        "temperal_downsample": [False, True, True, True],
    }
    return AutoencoderKLQwenImage21(**(sizes | changes)).eval()


def deep_compression(channels: int = CHANNELS) -> AutoencoderDC:
    """Sana's: 32 times smaller."""
    widths = (4, 4, 4, 4, 8, 8)
    blocks = ("ResBlock",) * 5 + ("EfficientViTBlock",)
    return AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (), (), (5,)),
        decoder_norm_types="rms_norm",
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    ).eval()


def hunyuan_image_vae() -> AutoencoderKLHunyuanImage:
    """HunyuanImage 2.1's; its norms have 32 groups, so it cannot be narrower."""
    return AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=CHANNELS,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=64,
        scaling_factor=0.75289,
    ).eval()


def hunyuan_refiner_vae() -> AutoencoderKLHunyuanImageRefiner:
    """The one of HunyuanImage's refiner, which takes an image for a video of one frame."""
    return AutoencoderKLHunyuanImageRefiner(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    ).eval()


def ltx_vae(channels: int = 8) -> AutoencoderKLLTXVideo:
    """LTX-Video's: 32 times smaller, of eight frames one."""
    return AutoencoderKLLTXVideo(
        latent_channels=channels,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def ltx2_vae(channels: int = 8) -> AutoencoderKLLTX2Video:
    """LTX-2's: 32 times smaller, of eight frames one."""
    return AutoencoderKLLTX2Video(
        latent_channels=channels,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    ).eval()


def cogvideox_vae(channels: int = CHANNELS) -> AutoencoderKLCogVideoX:
    """CogVideoX's: eight times smaller, of four frames one."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=64,
        sample_width=64,
    ).eval()


def hunyuan_video_vae(channels: int = CHANNELS) -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo's: eight times smaller, of four frames one."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=channels, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()


def hunyuan15_vae(channels: int = CHANNELS) -> AutoencoderKLHunyuanVideo15:
    """HunyuanVideo 1.5's: sixteen times smaller, of four frames one."""
    return AutoencoderKLHunyuanVideo15(
        latent_channels=channels, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
    ).eval()


def cosmos_vae(channels: int = CHANNELS) -> AutoencoderKLCosmos:
    """Cosmos 1's: eight times smaller, of eight frames one."""
    return AutoencoderKLCosmos(
        latent_channels=channels,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    ).eval()


def _causal(channels: int) -> dict[str, Any]:
    return {
        "base_dim": 4,
        "z_dim": channels,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * channels,
        "latents_std": [1.0] * channels,
    }
