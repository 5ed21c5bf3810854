"""Rows of the FLUX families and of those that share their blocks."""

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
from worker.catalog.families.row import Architecture, LoraRule, Name, Prompts, alone, whole
from worker.core.model import Task

_FLUX2 = has_any("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight")
_CHROMA = has_any("distilled_guidance_layer.in_proj.weight")
_FLUX_BLOCKS = all_of(
    any_of(
        has_all("double_blocks.0.img_attn.norm.key_norm.scale", "vector_in.in_layer.weight"),
        has_all("single_transformer_blocks.0.proj_mlp.weight", "time_text_embed.text_embedder.linear_1.weight"),
    ),
    none_of(_FLUX2, _CHROMA, has_any("controlnet_x_embedder.weight")),
)
_FLUX_GUIDANCE = has_any("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight")


def _flux(channels: int) -> Condition:
    """FLUX.1 with `channels` packed input channels: 64 generates, 384 fills, 128 follows a control image."""
    packed = shape_is("img_in.weight", 3072 * channels // 2, 1)  # two 4-bit numbers in a byte
    entry = any_of(shape_is("img_in.weight", 3072, channels), shape_is("x_embedder.weight", 3072, channels), packed)
    return all_of(_FLUX_BLOCKS, entry)


_FLUX_DEV = all_of(_flux(64), _FLUX_GUIDANCE)
_FLUX_SCHNELL = all_of(_flux(64), none_of(_FLUX_GUIDANCE))

_FLUX_PIPELINES = {
    Task.TEXT_TO_IMAGE: "FluxPipeline",
    Task.IMAGE_TO_IMAGE: "FluxImg2ImgPipeline",
    Task.INPAINTING: "FluxInpaintPipeline",
}
_TRUE_CFG = {"negative_prompt": "takes effect when true_cfg_scale is above 1"}

FLUXES: tuple[Architecture, ...] = (
    Architecture(
        id="flux1",
        title="FLUX.1 [dev]",
        pipelines=_FLUX_PIPELINES,
        classes=("FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline"),
        defaults={"num_inference_steps": 28, "guidance_scale": 3.5},
        checkpoint=whole(_FLUX_DEV),
        original=True,
        denoiser=alone(_FLUX_DEV),
        config="flux1",
        base_repo="black-forest-labs/FLUX.1-dev",
        activation_gb_per_mp=4.0,
        notes=_TRUE_CFG | {"variants": "Krea and Kontext have the same keys and shapes"},
        variants={
            "krea": {"guidance_scale": 4.5},
            "turbo": {"num_inference_steps": 8, "guidance_scale": 3.5},
            "hyper": {"num_inference_steps": 8, "guidance_scale": 3.5},
            "lightning": {"num_inference_steps": 8, "guidance_scale": 3.5},
        },
        prompts=Prompts("clip-t5", {"clip_l": 768, "t5": 4096}),
        image_prompts=True,
        lora_note="FLUX.1 and Chroma LoRAs name the same modules",
        civitai=(Name("Flux.1 D"), Name("Flux.1 Krea", "krea")),
        names=(Name("flux.*krea", "krea"), Name("flux", general=2)),
        loras=(
            LoraRule(
                r"^(?:double|single)_blocks_\d+_(?:img|txt|linear|modulation|qkv|proj)", inputs=(3072,), general=True
            ),
            LoraRule(r"^single_transformer_blocks_\d+_(?:attn|proj|norm)", inputs=(3072,), general=True),
        ),
        ai_toolkit="flux",
    ),
    Architecture(
        id="flux1-schnell",
        title="FLUX.1 [schnell]",
        pipelines=_FLUX_PIPELINES,
        sibling="flux1",
        repository=config_is("transformer/config.json", "guidance_embeds", False),
        defaults={"num_inference_steps": 4, "guidance_scale": 0.0},
        checkpoint=whole(_FLUX_SCHNELL),
        original=True,
        denoiser=alone(_FLUX_SCHNELL),
        config="flux1-schnell",
        base_repo="black-forest-labs/FLUX.1-schnell",
        activation_gb_per_mp=4.0,
        notes=_TRUE_CFG,
        family="flux1",
        civitai=(Name("Flux.1 S"),),
        names=(Name("flux.*schnell"),),
    ),
    Architecture(
        id="flux1-fill",
        title="FLUX.1 Fill",
        pipelines={Task.INPAINTING: "FluxFillPipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 30.0},
        negative_prompt=False,
        checkpoint=whole(_flux(384)),
        original=True,
        denoiser=alone(_flux(384)),
        config="flux1",
        base_repo="black-forest-labs/FLUX.1-Fill-dev",
        activation_gb_per_mp=4.0,
        family="flux1",
        names=(Name("flux.*fill"),),
    ),
    Architecture(
        id="flux1-control",
        title="FLUX.1 Depth and Canny",
        pipelines={Task.CONTROLNET: "FluxControlPipeline"},
        classes=("FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline"),
        defaults={"num_inference_steps": 30, "guidance_scale": 10.0},
        negative_prompt=False,
        checkpoint=whole(_flux(128)),
        original=True,
        denoiser=alone(_flux(128)),
        config="flux1",
        base_repo="black-forest-labs/FLUX.1-Depth-dev",
        activation_gb_per_mp=4.0,
        family="flux1",
        names=(Name("flux.*(?:depth|canny)"),),
    ),
    Architecture(
        id="flux1-kontext",
        title="FLUX.1 Kontext",
        pipelines={Task.IMAGE_EDITING: "FluxKontextPipeline", Task.INPAINTING: "FluxKontextInpaintPipeline"},
        defaults={"num_inference_steps": 28, "guidance_scale": 2.5},
        config="flux1",
        base_repo="black-forest-labs/FLUX.1-Kontext-dev",
        activation_gb_per_mp=5.0,
        notes=_TRUE_CFG,
        family="flux1",
        twin="flux1",
        civitai=(Name("Flux.1 Kontext"),),
        names=(Name(r"flux.?[13]?.?(?:\w+.)?kontext|kontext"),),
    ),
    Architecture(
        id="flux2",
        title="FLUX.2 [dev]",
        pipelines={Task.TEXT_TO_IMAGE: "Flux2Pipeline", Task.IMAGE_EDITING: "Flux2Pipeline"},
        defaults={"num_inference_steps": 50, "guidance_scale": 4.0},
        negative_prompt=False,
        original=True,
        denoiser=alone(
            all_of(_FLUX2, any_of(dimension("txt_in.weight", 1, 15360), dimension("context_embedder.weight", 1, 15360)))
        ),
        base_repo="black-forest-labs/FLUX.2-dev",
        activation_gb_per_mp=5.0,
        autoencoders=("flux2-32",),
        civitai=(Name("Flux.2 D"),),
        names=(Name("flux.?2", general=1),),
        loras=(
            LoraRule(r"^(?:double|single)_blocks_\d+_", inputs=(6144,)),
            LoraRule(r"^single_transformer_blocks_\d+_attn_to_qkv_mlp_proj$", inputs=(6144,)),
            LoraRule(r"^transformer_blocks_\d+_attn_add_[qkv]_proj$", inputs=(6144,)),
        ),
    ),
    Architecture(
        id="flux2-klein",
        title="FLUX.2 [klein]",
        pipelines={
            Task.TEXT_TO_IMAGE: "Flux2KleinPipeline",
            Task.IMAGE_EDITING: "Flux2KleinPipeline",
            Task.INPAINTING: "Flux2KleinInpaintPipeline",
        },
        classes=("Flux2KleinKVPipeline",),
        defaults={"num_inference_steps": 4, "guidance_scale": 1.0},
        negative_prompt=False,
        original=True,
        denoiser=alone(
            all_of(
                _FLUX2,
                any_of(
                    dimension("txt_in.weight", 1, 7680, 12288), dimension("context_embedder.weight", 1, 7680, 12288)
                ),
            )
        ),
        config="flux2-klein",
        base_repo="black-forest-labs/FLUX.2-klein-4B",
        activation_gb_per_mp=4.0,
        notes={"variants": "the base models have the same keys and want 50 steps at guidance 4"},
        variants={"base": {"num_inference_steps": 50, "guidance_scale": 4.0}},
        civitai=(
            Name("Flux.2 Klein 9B"),
            Name("Flux.2 Klein 4B"),
            Name("Flux.2 Klein 9B-base", "base"),
            Name("Flux.2 Klein 4B-base", "base"),
        ),
        names=(Name("flux.?2.*klein.*base", "base"), Name("flux.?2.*klein")),
        loras=(
            LoraRule(r"^single_blocks_\d+_linear1$", outputs=(27648,)),
            LoraRule(r"^(?:double|single)_blocks_\d+_", inputs=(4096,)),
            LoraRule(r"^single_transformer_blocks_\d+_attn_to_qkv_mlp_proj$", inputs=(3072, 4096)),
        ),
    ),
    Architecture(
        id="chroma",
        title="Chroma",
        pipelines={
            Task.TEXT_TO_IMAGE: "ChromaPipeline",
            Task.IMAGE_TO_IMAGE: "ChromaImg2ImgPipeline",
            Task.INPAINTING: "ChromaInpaintPipeline",
        },
        defaults={"num_inference_steps": 35, "guidance_scale": 5.0},
        original=True,
        denoiser=alone(_CHROMA),
        config="chroma",
        base_repo="lodestones/Chroma1-HD",
        activation_gb_per_mp=4.0,
        adapters_like="flux1",
        civitai=(Name("Chroma"),),
        names=(Name("chroma"),),
        loras=(LoraRule(r"^distilled_guidance_layer"),),
    ),
)
