"""Models that denoise pixels instead of latents: DeepFloyd IF, unCLIP, RePaint."""

from typing import Any

import torch
from diffusers import RePaintScheduler, UNet2DModel
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from transformers import CLIPConfig

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import PROMPT, STEPS, unclip_prior
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import MOVED, Image, Mask, Recipe

_BLOCKS = {
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}


def _floyd(**unet: object) -> dict[str, Any]:
    told = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    told |= {"encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_proj"}
    config = {**_BLOCKS, **told, "sample_size": 32, "in_channels": 3, "out_channels": 6, **unet}
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": parts.t5(),
        "unet": parts.unet(**config),
        "scheduler": parts.ddpm(variance_type="learned_range"),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }


def _floyd_larger() -> dict[str, Any]:
    return {**_floyd(in_channels=6, class_embed_type="timestep"), "image_noising_scheduler": parts.ddpm()}


def _floyd_checked() -> dict[str, Any]:
    """With the safety checker and the watermarker: one pipeline does not load without them."""
    config = CLIPConfig(text_config=parts.clip_config().to_dict(), vision_config=parts.clip_vision_config().to_dict())
    checker = IFSafetyChecker(config).eval()
    for head in (checker.p_head, checker.w_head):
        torch.nn.init.zeros_(head.weight)
    eye = {"safety_checker": checker, "feature_extractor": parts.clip_image_processor()}
    return {**_floyd_larger(), **eye, "watermarker": IFWatermarker(), "requires_safety_checker": True}


def _plain_unet(sample_size: int) -> UNet2DModel:
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
    ).eval()


def _unclip_decoder() -> dict[str, Any]:
    decoder = parts.unet(
        **_BLOCKS,
        sample_size=16,
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64),
        class_embed_type="identity",
    )
    projection = UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=4 * 32, cross_attention_dim=WIDTH)
    return {
        "decoder": decoder,
        "text_encoder": parts.clip_text_projected(),
        "tokenizer": parts.clip_tokenizer(),
        "text_proj": projection.eval(),
        "super_res_first": _plain_unet(32),
        "super_res_last": _plain_unet(32),
        "decoder_scheduler": parts.unclip_scheduler(variance_type="learned_range", prediction_type="epsilon"),
        "super_res_scheduler": parts.unclip_scheduler(prediction_type="epsilon"),
    }


def _unclip() -> dict[str, Any]:
    return {**_unclip_decoder(), "prior": unclip_prior(), "prior_scheduler": parts.unclip_scheduler()}


def _unclip_variation() -> dict[str, Any]:
    eye = {"feature_extractor": parts.clip_image_processor(), "image_encoder": parts.clip_vision_projected()}
    return {**_unclip_decoder(), **eye}


def _repaint() -> dict[str, Any]:
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return {"unet": unet.eval(), "scheduler": RePaintScheduler()}


_IMAGE = {**PROMPT, "image": Image(32, 32)}
_MASKED = {**_IMAGE, "mask_image": Mask(32, 32)}
_ORIGINAL = {"original_image": Image(32, 32, seed=1), "image": Image(16, 16)}
_FEW = {"decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}

RECIPES = (
    Recipe("IFPipeline", _floyd, PROMPT),
    Recipe("IFImg2ImgPipeline", _floyd, {**_IMAGE, "strength": 0.8, "num_inference_steps": 4}),
    Recipe("IFInpaintingPipeline", _floyd, {**_MASKED, "strength": 0.8, "num_inference_steps": 4}),
    Recipe("IFSuperResolutionPipeline", _floyd_larger, {**PROMPT, "image": Image(16, 16)}),
    Recipe(
        "IFImg2ImgSuperResolutionPipeline",
        _floyd_checked,
        {**PROMPT, **_ORIGINAL, "num_inference_steps": 4},
        broken="insists on its safety checker, which does not load with transformers 5",
    ),
    Recipe(
        "IFInpaintingSuperResolutionPipeline",
        _floyd_larger,
        {**PROMPT, **_ORIGINAL, "mask_image": Mask(32, 32), "num_inference_steps": 4},
    ),
    Recipe(
        "UnCLIPPipeline",
        _unclip,
        {"prompt": "a red apple", "prior_num_inference_steps": 2, **_FEW},
        broken=MOVED,
        moved={"text_proj": "unclip"},
    ),
    Recipe(
        "UnCLIPImageVariationPipeline",
        _unclip_variation,
        {"image": Image(32, 32), **_FEW},
        broken=MOVED,
        moved={"text_proj": "unclip"},
    ),
    Recipe(
        "RePaintPipeline",
        _repaint,
        {"image": Image(32, 32), "mask_image": Mask(32, 32), **STEPS, "jump_length": 1, "jump_n_sample": 1},
    ),
)
