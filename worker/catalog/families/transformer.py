"""Rows of the families that denoise with a transformer."""

from worker.catalog.conditions import (
    all_of,
    any_of,
    dimension,
    has_all,
    has_any,
    none_of,
)
from worker.catalog.families.row import MEGAPIXEL, Architecture, LoraRule, Name, alone
from worker.core.model import Task

_CONTROLS = has_any("controlnet_blocks.0.weight")  # a ControlNet has its base's way in
_Z_IMAGE = all_of(has_all("layers.0.adaLN_modulation.0.weight", "cap_pad_token"), none_of(has_any("cap_norm.weight")))
_LUMINA2 = any_of(
    dimension("cap_embedder.0.weight", 0, 2304), dimension("time_caption_embed.caption_embedder.0.weight", 0, 2304)
)
_AURA = any_of(
    has_all("double_layers.0.attn.w1q.weight", "cond_seq_linear.weight"),
    has_all("joint_transformer_blocks.0.attn.to_q.weight", "register_tokens"),
)
_SANA = any_of(
    has_all("blocks.0.cross_attn.q_linear.weight", "attention_y_norm.weight"),
    all_of(has_all("caption_norm.weight", "patch_embed.proj.weight", "time_embed.linear.weight"), none_of(_CONTROLS)),
)
_SPRINT = has_any("cfg_embedder.mlp.0.weight", "time_embed.guidance_embedder.linear_1.weight")
_PIXART_ORIGINAL = all_of(
    has_all("t_block.1.weight", "y_embedder.y_embedding"),
    none_of(has_any("attention_y_norm.weight", "mlp_t5.0.weight")),
)
_PIXART = any_of(
    _PIXART_ORIGINAL,
    all_of(
        has_all("adaln_single.linear.weight", "caption_projection.linear_1.weight"),
        dimension("pos_embed.proj.weight", 0, 1152),
        dimension("transformer_blocks.0.attn2.to_k.weight", 1, 1152),
        none_of(has_any("temporal_transformer_blocks.0.attn1.to_k.weight")),
    ),
)  # fmt: skip
# The 1024 models of PixArt-α take the image's size and aspect as inputs; Σ and the small α models do not.
_MICRO = has_any("csize_embedder.mlp.0.weight", "adaln_single.emb.resolution_embedder.linear_1.weight")
_COGVIEW = has_all("time_condition_embed.condition_embedder.linear_1.weight", "patch_embed.text_proj.weight")


TRANSFORMERS: tuple[Architecture, ...] = (
    Architecture(
        id="z-image",
        title="Z-Image",
        pipelines={
            Task.TEXT_TO_IMAGE: "ZImagePipeline",
            Task.IMAGE_TO_IMAGE: "ZImageImg2ImgPipeline",
            Task.INPAINTING: "ZImageInpaintPipeline",
        },
        classes=("ZImageOmniPipeline", "ZImageControlNetPipeline", "ZImageControlNetInpaintPipeline"),
        defaults={"num_inference_steps": 9, "guidance_scale": 0.0},
        original=True,
        denoiser=alone(_Z_IMAGE),
        config="z-image",
        base_repo="Tongyi-MAI/Z-Image-Turbo",
        activation_gb_per_mp=3.5,
        notes={"variants": "Z-Image base has the same keys and wants 50 steps at guidance 4"},
        variants={"turbo": {}, "base": {"num_inference_steps": 50, "guidance_scale": 4.0}},
        civitai=(Name("ZImageTurbo", "turbo"), Name("ZImageBase", "base")),
        names=(Name("z.?image.*turbo", "turbo"), Name("z.?image")),
        loras=(LoraRule(r"^(?:layers|context_refiner|noise_refiner)_\d+_attention", inputs=(3840,)),),
        ai_toolkit="zimage",
    ),
    Architecture(
        id="krea2",
        title="Krea 2",
        pipelines={Task.TEXT_TO_IMAGE: "Krea2Pipeline"},
        defaults={"num_inference_steps": 28, "guidance_scale": 4.5},
        original=True,
        denoiser=alone(has_any("txtfusion.projector.weight")),
        base_repo="krea/Krea-2-Raw",
        activation_gb_per_mp=4.0,
        variants={"turbo": {"num_inference_steps": 8, "guidance_scale": 0.0}},
        civitai=(Name("Krea 2"),),
        names=(Name("krea.?2.*turbo", "turbo"), Name("krea.?2")),
        loras=(
            LoraRule(
                r"^txtfusion|^blocks_\d+_attn_(?:wq|wk|wv|wo|gate)$|^text_fusion|^transformer_blocks_\d+_attn_to_gate$"
            ),
        ),
    ),
    Architecture(
        id="glm-image",
        title="GLM-Image",
        pipelines={Task.TEXT_TO_IMAGE: "GlmImagePipeline", Task.IMAGE_EDITING: "GlmImagePipeline"},
        size_multiple=32,
        defaults={"num_inference_steps": 50, "guidance_scale": 1.5},
        negative_prompt=False,
        denoiser=alone(has_any("glyph_projector.net.0.proj.weight", "prior_projector.net.0.proj.weight")),
        base_repo="zai-org/GLM-Image",
        activation_gb_per_mp=5.0,
        names=(Name("glm.?image"),),
    ),
    Architecture(
        id="lumina2",
        title="Lumina Image 2.0",
        pipelines={Task.TEXT_TO_IMAGE: "Lumina2Pipeline"},
        defaults={"num_inference_steps": 30, "guidance_scale": 4.0},
        original=True,
        denoiser=alone(_LUMINA2),
        base_repo="Alpha-VLLM/Lumina-Image-2.0",
        activation_gb_per_mp=3.0,
        civitai=(Name("Lumina"),),
        names=(Name("lumina.?(?:image.?)?2|lumina"),),
        loras=(LoraRule(r"^(?:layers|context_refiner|noise_refiner)_\d+_(?:attention|attn_to)", inputs=(2304,)),),
        ai_toolkit="lumina2",
    ),
    Architecture(
        id="auraflow",
        title="AuraFlow",
        pipelines={Task.TEXT_TO_IMAGE: "AuraFlowPipeline"},
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 3.5},
        original=True,
        denoiser=alone(_AURA),
        base_repo="fal/AuraFlow-v0.3",
        activation_gb_per_mp=3.0,
        variants={"pony": {}},
        fixed_size=True,
        civitai=(Name("AuraFlow"), Name("Pony V7", "pony")),
        names=(Name("pony.?(?:diffusion.?)?v7", "pony"), Name("aura.?flow")),
        loras=(LoraRule(r"^joint_transformer_blocks_\d|^double_layers_\d"),),
        ai_toolkit="auraflow",
    ),
    Architecture(
        id="sana",
        title="Sana",
        pipelines={Task.TEXT_TO_IMAGE: "SanaPipeline"},
        classes=("SanaPAGPipeline", "SanaControlNetPipeline"),
        size_multiple=32,
        max_pixels=16 * MEGAPIXEL,
        defaults={"num_inference_steps": 20, "guidance_scale": 4.5},
        original=True,
        unread=alone(has_all("blocks.0.cross_attn.q_linear.weight", "blocks.0.attn.q_norm.weight")),  # Sana 1.5
        denoiser=alone(all_of(_SANA, none_of(_SPRINT))),
        base_repo="Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        activation_gb_per_mp=1.5,
        scheduler="DPMSolverMultistepScheduler",
        autoencoders=("dc-32",),
        names=(Name("sana(?![a-z])", general=1),),
        loras=(LoraRule(r"^transformer_blocks_\d+_attn[12]_to_", inputs=(2240,)),),
    ),
    Architecture(
        id="sana-sprint",
        title="Sana Sprint",
        pipelines={Task.TEXT_TO_IMAGE: "SanaSprintPipeline", Task.IMAGE_TO_IMAGE: "SanaSprintImg2ImgPipeline"},
        size_multiple=32,
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 2, "guidance_scale": 4.5},
        max_steps=50,
        negative_prompt=False,
        base_repo="Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        activation_gb_per_mp=1.5,
        family="sana",
        unread=alone(has_any("blocks.0.cross_attn.q_linear.weight")),
        denoiser=alone(all_of(_SANA, _SPRINT)),
        noise=None,
        scheduler="SCMScheduler",
        names=(Name("sana.?sprint"),),
    ),
    Architecture(
        id="pixart-alpha",
        title="PixArt-α",
        pipelines={Task.TEXT_TO_IMAGE: "PixArtAlphaPipeline"},
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 20, "guidance_scale": 4.5},
        unread=alone(_PIXART_ORIGINAL),
        base_repo="PixArt-alpha/PixArt-XL-2-1024-MS",
        denoiser=alone(all_of(_PIXART, _MICRO)),
        variants={"lcm": {"num_inference_steps": 4, "guidance_scale": 0.0}},
        noise="diffusion",
        scheduler="DPMSolverMultistepScheduler",
        civitai=(Name("PixArt a"),),
        names=(Name("pixart", general=1),),
        ai_toolkit="pixart",
    ),
    Architecture(
        id="pixart-sigma",
        title="PixArt-Σ",
        pipelines={Task.TEXT_TO_IMAGE: "PixArtSigmaPipeline"},
        classes=("PixArtSigmaPAGPipeline",),
        defaults={"num_inference_steps": 20, "guidance_scale": 4.5},
        denoiser=alone(all_of(_PIXART, none_of(_MICRO))),
        unread=alone(_PIXART_ORIGINAL),
        base_repo="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        noise="diffusion",
        scheduler="DPMSolverMultistepScheduler",
        civitai=(Name("PixArt E"),),
        names=(Name("pixart.*(?:sigma|σ)"),),
        ai_toolkit="pixart_sigma",
    ),
    Architecture(
        id="hunyuan-dit",
        title="Hunyuan-DiT",
        pipelines={Task.TEXT_TO_IMAGE: "HunyuanDiTPipeline"},
        classes=("HunyuanDiTControlNetPipeline", "HunyuanDiTPAGPipeline"),
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        unread=alone(has_any("blocks.0.attn1.Wqkv.weight")),
        denoiser=alone(has_any("mlp_t5.0.weight")),
        base_repo="Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers",
        activation_gb_per_mp=3.0,
        noise="diffusion",
        scheduler="DDPMScheduler",
        civitai=(Name("Hunyuan 1"),),
        names=(Name("hunyuan.?dit"),),
    ),
    Architecture(
        id="hunyuan-image",
        title="HunyuanImage 2.1",
        pipelines={Task.TEXT_TO_IMAGE: "HunyuanImagePipeline"},
        classes=("HunyuanImageRefinerPipeline",),
        native_size=2048,
        size_multiple=64,
        max_pixels=6 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "distilled_guidance_scale": 3.25},
        guidance="distilled_guidance_scale",
        unread=alone(has_any("byt5_in.layernorm.weight")),
        denoiser=alone(
            any_of(
                has_all("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias", "byt5_in.layernorm.weight"),
                all_of(
                    has_all(
                        "context_embedder.token_refiner.refiner_blocks.0.norm1.weight", "context_embedder_2.norm.weight"
                    ),
                    none_of(has_any("cond_type_embed.weight")),  # HunyuanVideo 1.5
                ),
            )
        ),
        base_repo="hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        names=(Name("hunyuan.?image"),),
        loras=(
            LoraRule(
                r"_token_refiner_|^(?:double|single)_blocks_\d+_|^single_transformer_blocks_\d+_"
                r"|^transformer_blocks_\d+_attn_add_",
                inputs=(3584, 14336),
            ),
        ),
    ),
    Architecture(
        id="cogview4",
        title="CogView4",
        pipelines={Task.TEXT_TO_IMAGE: "CogView4Pipeline"},
        classes=("CogView4ControlPipeline",),
        size_multiple=32,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        base_repo="zai-org/CogView4-6B",
        activation_gb_per_mp=3.5,
        denoiser=alone(all_of(_COGVIEW, dimension("patch_embed.proj.weight", 0, 4096))),
        names=(Name("cogview.?4"),),
        loras=(LoraRule(r"^transformer_blocks_\d+_attn1_to_", inputs=(4096,), general=True),),
        ai_toolkit="cogview4",
    ),
    Architecture(
        id="cogview3",
        title="CogView3-Plus",
        pipelines={Task.TEXT_TO_IMAGE: "CogView3PlusPipeline"},
        size_multiple=32,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        base_repo="zai-org/CogView3-Plus-3B",
        activation_gb_per_mp=3.5,
        denoiser=alone(all_of(_COGVIEW, dimension("patch_embed.proj.weight", 0, 2560))),
        noise="cogvideo",
        scheduler=None,
        names=(Name("cogview.?3"),),
    ),
    Architecture(
        id="hidream",
        title="HiDream-I1",
        pipelines={Task.TEXT_TO_IMAGE: "HiDreamImagePipeline"},
        max_pixels=2 * MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0},
        denoiser=alone(has_any("double_stream_blocks.0.block.adaLN_modulation.1.bias")),
        base_repo="HiDream-ai/HiDream-I1-Full",
        activation_gb_per_mp=4.0,
        civitai=(Name("HiDream"),),
        names=(Name("hidream"),),
        loras=(LoraRule(r"^double_stream_blocks_\d"),),
        ai_toolkit="hidream",
    ),
)
