"""Rows of the families that make video."""

from worker.catalog.conditions import all_of, dimension, has_all, has_any, none_of
from worker.catalog.families.row import MEGAPIXEL, Architecture, alone
from worker.core.model import Task

_WAN_HEAD = has_any("head.modulation", "condition_embedder.time_proj.weight")
_WAN = all_of(_WAN_HEAD, dimension("patch_embedding.weight", 1, 16, 36, 48))
_HUNYUAN = all_of(
    has_any(
        "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",
        "context_embedder.token_refiner.refiner_blocks.0.norm1.weight",
    ),
    none_of(has_any("byt5_in.layernorm.weight", "context_embedder_2.norm.weight")),
)

VIDEOS: tuple[Architecture, ...] = (
    Architecture(
        id="wan",
        title="Wan 2.x",
        pipelines={Task.TEXT_TO_VIDEO: "WanPipeline", Task.VIDEO_TO_VIDEO: "WanVideoToVideoPipeline"},
        classes=("WanVACEPipeline", "WanAnimatePipeline"),
        native_size=832,
        size_multiple=16,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0, "num_frames": 81, "height": 480, "width": 832},
        denoiser=alone(all_of(_WAN, none_of(dimension("patch_embedding.weight", 1, 36)))),
        base_repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        activation_gb_per_mp=12.0,
    ),
    Architecture(
        id="wan-i2v",
        title="Wan 2.x image to video",
        pipelines={Task.IMAGE_TO_VIDEO: "WanImageToVideoPipeline"},
        native_size=832,
        size_multiple=16,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 5.0, "num_frames": 81, "height": 480, "width": 832},
        denoiser=alone(all_of(_WAN_HEAD, dimension("patch_embedding.weight", 1, 36))),
        base_repo="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        family="wan",
        activation_gb_per_mp=12.0,
    ),
    Architecture(
        id="cogvideox",
        title="CogVideoX",
        pipelines={Task.TEXT_TO_VIDEO: "CogVideoXPipeline", Task.VIDEO_TO_VIDEO: "CogVideoXVideoToVideoPipeline"},
        classes=("CogVideoXFunControlPipeline",),
        native_size=720,
        size_multiple=16,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 6.0, "num_frames": 49},
        base_repo="zai-org/CogVideoX-5b",
        activation_gb_per_mp=12.0,
    ),
    Architecture(
        id="cogvideox-i2v",
        title="CogVideoX image to video",
        pipelines={Task.IMAGE_TO_VIDEO: "CogVideoXImageToVideoPipeline"},
        native_size=720,
        size_multiple=16,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 6.0, "num_frames": 49},
        base_repo="zai-org/CogVideoX-5b-I2V",
        family="cogvideox",
        activation_gb_per_mp=12.0,
    ),
    Architecture(
        id="ltx",
        title="LTX-Video",
        pipelines={Task.TEXT_TO_VIDEO: "LTXPipeline", Task.IMAGE_TO_VIDEO: "LTXImageToVideoPipeline"},
        classes=("LTXConditionPipeline", "LTXI2VLongMultiPromptPipeline"),
        native_size=704,
        size_multiple=32,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 3.0, "num_frames": 161, "height": 512, "width": 704},
        denoiser=alone(
            all_of(
                has_any("patchify_proj.weight", "proj_in.weight"),
                has_all("transformer_blocks.27.scale_shift_table", "caption_projection.linear_1.weight"),
                none_of(has_any("av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1.weight")),
            )
        ),
        base_repo="Lightricks/LTX-Video",
        activation_gb_per_mp=8.0,
    ),
    Architecture(
        id="ltx2",
        title="LTX-2",
        pipelines={Task.TEXT_TO_VIDEO: "LTX2Pipeline", Task.IMAGE_TO_VIDEO: "LTX2ImageToVideoPipeline"},
        classes=("LTX2ConditionPipeline", "LTX2InContextPipeline"),
        native_size=768,
        size_multiple=32,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 30, "guidance_scale": 3.0, "height": 512, "width": 768},
        denoiser=alone(has_all("av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1.weight")),
        base_repo="Lightricks/LTX-2",
        activation_gb_per_mp=10.0,
    ),
    Architecture(
        id="hunyuan-video",
        title="HunyuanVideo",
        pipelines={
            Task.TEXT_TO_VIDEO: "HunyuanVideoPipeline",
            Task.IMAGE_TO_VIDEO: "HunyuanVideoImageToVideoPipeline",
        },
        classes=("HunyuanVideoFramepackPipeline", "HunyuanSkyreelsImageToVideoPipeline"),
        native_size=720,
        size_multiple=16,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 50, "guidance_scale": 6.0, "num_frames": 129, "height": 720, "width": 1280},
        denoiser=alone(_HUNYUAN),
        base_repo="hunyuanvideo-community/HunyuanVideo",
        activation_gb_per_mp=14.0,
    ),
    Architecture(
        id="mochi",
        title="Mochi 1",
        pipelines={Task.TEXT_TO_VIDEO: "MochiPipeline"},
        native_size=848,
        size_multiple=16,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 64, "guidance_scale": 4.5, "num_frames": 19},
        denoiser=alone(has_any("blocks.0.attn.qkv_x.weight")),
        base_repo="genmo/mochi-1-preview",
        activation_gb_per_mp=14.0,
    ),
    Architecture(
        id="svd",
        title="Stable Video Diffusion",
        pipelines={Task.IMAGE_TO_VIDEO: "StableVideoDiffusionPipeline"},
        native_size=1024,
        size_multiple=64,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 25, "height": 576, "width": 1024},
        guidance="max_guidance_scale",
        negative_prompt=False,
        denoiser=alone(
            has_any(
                "input_blocks.1.1.time_stack.0.norm1.weight",
                "down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight",
            )
        ),
        base_repo="stabilityai/stable-video-diffusion-img2vid-xt",
        activation_gb_per_mp=10.0,
    ),
    Architecture(
        id="animatediff",
        title="AnimateDiff",
        pipelines={Task.TEXT_TO_VIDEO: "AnimateDiffPipeline", Task.VIDEO_TO_VIDEO: "AnimateDiffVideoToVideoPipeline"},
        classes=("AnimateDiffSDXLPipeline", "AnimateDiffControlNetPipeline", "AnimateDiffPAGPipeline"),
        native_size=512,
        size_multiple=8,
        max_pixels=MEGAPIXEL,
        defaults={"num_inference_steps": 25, "guidance_scale": 7.5, "num_frames": 16},
        family="sd1",
        activation_gb_per_mp=10.0,
    ),
)
