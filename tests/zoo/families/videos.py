"""UNets that draw videos: AnimateDiff, PIA, Stable Video Diffusion, ModelScope, Text2Video-Zero, I2VGen-XL."""

from typing import Any

from diffusers import (
    AutoencoderKLTemporalDecoder,
    I2VGenXLUNet,
    MotionAdapter,
    SparseControlNetModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)

from tests.zoo import parts
from tests.zoo.families.controlnet import with_controlnet
from tests.zoo.families.stable_diffusion import PROMPT, SIZED, bare, sd1
from tests.zoo.families.stable_diffusion_xl import sdxl
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Image, Recipe, Video

FILM = {**SIZED, "num_frames": 4}
_REDRAW = {**PROMPT, "video": Video(4), "strength": 0.8, "num_inference_steps": 4}
_IN_SPACE_AND_TIME = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
}


def animated(base: dict[str, Any], **changes: object) -> dict[str, Any]:
    """The parts of a UNet pipeline, and a motion adapter that fits its UNet."""
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        **changes,
    )
    return {**base, "motion_adapter": adapter.eval()}


def _sparse() -> dict[str, Any]:
    controlnet = SparseControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        motion_num_attention_heads=4,
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    )
    return {**animated(bare()), "controlnet": controlnet.eval()}


def _stable_video() -> dict[str, Any]:
    unet = UNetSpatioTemporalConditionModel(
        **_IN_SPACE_AND_TIME,
        in_channels=8,
        out_channels=4,
        num_attention_heads=(2, 4),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=3 * 32,
        num_frames=4,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, sample_size=64
    )
    return {
        "vae": vae.eval(),
        # the pipeline itself makes the image 224 wide
        "image_encoder": parts.clip_vision_projected(image_size=224, patch_size=56),
        "unet": unet.eval(),
        "scheduler": parts.euler(prediction_type="v_prediction", timestep_type="continuous", sigma_max=700.0),
        "feature_extractor": parts.clip_image_processor(),
    }


def _modelscope() -> dict[str, Any]:
    unet = UNet3DConditionModel(
        **_IN_SPACE_AND_TIME,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    return {**bare(), "unet": unet.eval()}


def _i2vgen() -> dict[str, Any]:
    unet = I2VGenXLUNet(
        **_IN_SPACE_AND_TIME,
        num_attention_heads=2,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    eye = {"image_encoder": parts.clip_vision_projected(), "feature_extractor": parts.clip_image_processor()}
    return {**bare(), **eye, "unet": unet.eval()}


_CONTROL = {"conditioning_frames": Video(4)}
_FRAMES = {"frame_ids": [0, 1, 2, 3]}
_ZERO = {**SIZED, "num_inference_steps": 4, "t0": 1, "t1": 2}

RECIPES = (
    Recipe("AnimateDiffPipeline", lambda: animated(bare()), FILM),
    Recipe("AnimateDiffSDXLPipeline", lambda: animated(sdxl()), FILM),
    Recipe("AnimateDiffControlNetPipeline", lambda: animated(with_controlnet(bare())), {**FILM, **_CONTROL}),
    Recipe("AnimateDiffSparseControlNetPipeline", _sparse, {**FILM, "conditioning_frames": [Image()]}),
    Recipe("AnimateDiffVideoToVideoPipeline", lambda: animated(bare()), _REDRAW),
    Recipe(
        "AnimateDiffVideoToVideoControlNetPipeline",
        lambda: animated(with_controlnet(bare())),
        {**_REDRAW, **_CONTROL},
    ),
    Recipe("PIAPipeline", lambda: animated(bare(), conv_in_channels=9), {**FILM, "image": Image()}),
    Recipe(
        "StableVideoDiffusionPipeline",
        _stable_video,
        {"image": Image(), "width": 64, "height": 64, "num_frames": 4, "num_inference_steps": 2},
    ),
    Recipe("TextToVideoSDPipeline", _modelscope, FILM),
    Recipe("VideoToVideoSDPipeline", _modelscope, _REDRAW),
    Recipe(
        "TextToVideoZeroPipeline",
        lambda: {**sd1(), **parts.safety_checker()},
        {**_ZERO, "num_frames": 4},
        call={**_ZERO, "video_length": 4},
        values=_FRAMES,
    ),
    Recipe(
        "TextToVideoZeroSDXLPipeline",
        sdxl,
        {**_ZERO, "num_frames": 4},
        call={**_ZERO, "video_length": 4},
        values=_FRAMES,
    ),
    Recipe(
        "I2VGenXLPipeline",
        _i2vgen,
        {**FILM, "image": Image()},
        broken="wants an attribute of CLIPTextModel that transformers 5 has not",
    ),
)
