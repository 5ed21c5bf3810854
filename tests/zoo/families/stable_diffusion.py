"""Stable Diffusion 1 and 2 and what grew from their UNet: variations, upscalers, unCLIP, latent consistency."""

from typing import Any

from diffusers import AutoencoderKL, PriorTransformer, UNet2DModel, VQModel
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

from tests.zoo import parts
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Image, Mask, Recipe

STEPS = {"num_inference_steps": 2}
PROMPT = {"prompt": "a red apple", "negative_prompt": "blue", **STEPS}
SIZED = {**PROMPT, "width": 64, "height": 64}
IMAGE = {**PROMPT, "image": Image()}
REDRAW = {**IMAGE, "strength": 0.8, "num_inference_steps": 4}
INPAINT = {**IMAGE, "mask_image": Mask()}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def text_parts() -> dict[str, Any]:
    """A tokenizer and CLIP's text encoder."""
    return {"tokenizer": parts.clip_tokenizer(), "text_encoder": parts.clip_text()}


def bare(**unet: object) -> dict[str, Any]:
    """The parts that every pipeline of this kind has."""
    return {**text_parts(), "vae": parts.vae(), "unet": parts.unet(**unet), "scheduler": parts.ddim()}


def sd1(**unet: object) -> dict[str, Any]:
    """The parts of Stable Diffusion 1, without the safety checker."""
    return {**bare(**unet), **NO_CHECKER}


def unclip_prior() -> PriorTransformer:
    """A prior that turns a text embedding into an image embedding, both `WIDTH` wide."""
    return PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDTH, num_embeddings=77
    ).eval()


def _four_fold_vae() -> AutoencoderKL:
    return parts.vae(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def _depth() -> dict[str, Any]:
    estimator = DPTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
    )
    return {
        **bare(in_channels=5),
        "depth_estimator": DPTForDepthEstimation(estimator).eval(),
        "feature_extractor": DPTImageProcessorPil(size={"height": 32, "width": 32}),
    }


def _variation() -> dict[str, Any]:
    return {
        "vae": parts.vae(),
        "unet": parts.unet(),
        "scheduler": parts.ddim(),
        "image_encoder": parts.clip_vision_projected(),
        "feature_extractor": parts.clip_image_processor(),
        "safety_checker": None,
        "requires_safety_checker": False,
    }


def _latent_upscale() -> dict[str, Any]:
    # the UNet is told 128 numbers of the noise level and the pooled text; its last output channel is thrown away
    unet = {"in_channels": 8, "out_channels": 5, "time_cond_proj_dim": 128 + WIDTH}
    return {**bare(**unet), "scheduler": parts.euler()}


def _upscale() -> dict[str, Any]:
    found = bare(in_channels=7, num_class_embeds=1000)
    return {**found, "vae": _four_fold_vae(), "low_res_scheduler": parts.ddpm(), "max_noise_level": 350}


def _unclip_base() -> dict[str, Any]:
    unet = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}
    return {
        **bare(**unet),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        "image_noising_scheduler": parts.ddpm(beta_schedule="squaredcos_cap_v2"),
    }


def _unclip() -> dict[str, Any]:
    return {
        **_unclip_base(),
        "prior_tokenizer": parts.clip_tokenizer(),
        "prior_text_encoder": parts.clip_text_projected(),
        "prior": unclip_prior(),
        "prior_scheduler": parts.unclip_scheduler(),
    }


def _unclip_image() -> dict[str, Any]:
    found = {"feature_extractor": parts.clip_image_processor(), "image_encoder": parts.clip_vision_projected()}
    return {**_unclip_base(), **found}


def _lcm() -> dict[str, Any]:
    return {**sd1(time_cond_proj_dim=32), "scheduler": parts.lcm()}


def _latent_text_to_image() -> dict[str, Any]:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    config = LDMBertConfig(
        vocab_size=200,
        d_model=WIDTH,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        head_dim=8,
        max_position_embeddings=77,
    )
    return {
        "vqvae": parts.vae(),
        "bert": LDMBertModel(config).eval(),
        "tokenizer": parts.bert_tokenizer(),
        "unet": parts.unet(),
        "scheduler": parts.ddim(),
    }


def _latent_super_resolution() -> dict[str, Any]:
    unet = UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    vqvae = VQModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=3,
        num_vq_embeddings=32,
        norm_num_groups=4,
    )
    return {"vqvae": vqvae.eval(), "unet": unet.eval(), "scheduler": parts.ddim()}


_LONGER = {"original_inference_steps": 50}  # of which a few are taken

RECIPES = (
    Recipe("StableDiffusionPipeline", sd1, SIZED),
    Recipe("StableDiffusionImg2ImgPipeline", sd1, REDRAW),
    Recipe("StableDiffusionInpaintPipeline", lambda: sd1(in_channels=9), {**INPAINT, "width": 64, "height": 64}),
    Recipe("StableDiffusionInstructPix2PixPipeline", lambda: sd1(in_channels=8), IMAGE),
    Recipe("StableDiffusionDepth2ImgPipeline", _depth, REDRAW),
    Recipe("StableDiffusionImageVariationPipeline", _variation, {"image": Image(), **STEPS}),
    Recipe("StableDiffusionLatentUpscalePipeline", _latent_upscale, {**PROMPT, "image": Image(32, 32)}),
    Recipe("StableDiffusionUpscalePipeline", _upscale, {**PROMPT, "image": Image(16, 16)}),
    Recipe("StableUnCLIPPipeline", _unclip, {**SIZED, "prior_num_inference_steps": 2}),
    Recipe("StableUnCLIPImg2ImgPipeline", _unclip_image, {**IMAGE, "width": 64, "height": 64}),
    Recipe(
        "LatentConsistencyModelPipeline",
        _lcm,
        {"prompt": "a red apple", "width": 64, "height": 64, **STEPS},
        values=_LONGER,
    ),
    Recipe(
        "LatentConsistencyModelImg2ImgPipeline",
        _lcm,
        {"prompt": "a red apple", "image": Image(), **STEPS},
        values=_LONGER,
    ),
    Recipe("LDMTextToImagePipeline", _latent_text_to_image, {"prompt": "a red apple", **STEPS}),
    Recipe("LDMSuperResolutionPipeline", _latent_super_resolution, {"image": Image(32, 32), **STEPS}),
)
