"""LTX-2, which makes a video and its sound together, and SANA-WM, which has its autoencoder."""

from typing import Any

from diffusers import (
    AutoencoderKLLTX2Audio,
    LTX2VideoTransformer3DModel,
    SanaWMTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder

from tests.zoo import autoencoders, language, parts
from tests.zoo.recipe import Image, Recipe, Video

_CHANNELS = 8
_BINS = 16  # of the sound's spectrum
_TEXT = {
    "prompt": "a cat walks",
    "negative_prompt": "blue",
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "spatio_temporal_guidance_blocks": [1],  # the model has two; by default the 29th is left out
}


def _ltx2(keyframes: bool = False, **others: Any) -> dict[str, Any]:
    transformer = LTX2VideoTransformer3DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=_CHANNELS,
        audio_out_channels=_CHANNELS,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=parts.WIDTH,
        use_keyframes_abs_pos_embedding=keyframes,
    )
    connectors = LTX2TextConnectors(
        caption_channels=parts.WIDTH,
        text_proj_in_factor=3,  # the layers of the text encoder, and the embedding
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
    )
    sound = AutoencoderKLLTX2Audio(
        base_channels=_CHANNELS, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=_BINS
    )
    vocoder = LTX2Vocoder(
        in_channels=2 * _BINS,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return {
        "scheduler": parts.flow_euler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1),
        "vae": autoencoders.ltx2_vae(_CHANNELS),
        "audio_vae": sound.eval(),
        "text_encoder": language.gemma3(),
        "tokenizer": language.gemma_tokenizer(),
        "connectors": connectors.eval(),
        "transformer": transformer.eval(),
        "vocoder": vocoder.eval(),
        **others,
    }


def _keyframes() -> dict[str, Any]:
    return _ltx2(keyframes=True, scheduler=parts.flow_euler())


def _latent_upsample() -> dict[str, Any]:
    upsampler = LTX2LatentUpsamplerModel(in_channels=_CHANNELS, mid_channels=32, num_blocks_per_stage=1)
    return {"vae": autoencoders.ltx2_vae(_CHANNELS), "latent_upsampler": upsampler.eval()}


def _sana_wm() -> dict[str, Any]:
    transformer = SanaWMTransformer3DModel(
        in_channels=_CHANNELS,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_post_attn_blocks=2,
        caption_channels=parts.WIDTH,
    )
    return {
        "tokenizer": language.gemma_tokenizer(),
        "text_encoder": language.gemma2(),
        "vae": autoencoders.ltx2_vae(_CHANNELS),
        "transformer": transformer.eval(),
        "scheduler": parts.flow_euler(),
    }


_IMAGE = {**_TEXT, "image": Image()}
_SIZE = {"width": 64, "height": 64}
_SHORT = {"prompt": "a cat walks", **_SIZE, "num_frames": 9}

# a camera that goes forward: its place and direction for each frame, and its focal lengths and centre in pixels
_WALK = {
    **_SHORT,
    "image": Image(),
    "c2w": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.1 * frame], [0, 0, 0, 1]] for frame in range(9)],
    "intrinsics": [64.0, 64.0, 32.0, 32.0],
    "num_inference_steps": 2,
}

RECIPES = (
    Recipe("LTX2Pipeline", _ltx2, _TEXT),
    # with its default of 33 the image is first compressed like a video, for which it wants `av`
    Recipe("LTX2ImageToVideoPipeline", _ltx2, {**_IMAGE, "image_crf": 0}),
    Recipe("LTX2ConditionPipeline", _ltx2, _TEXT),
    Recipe("LTX2InContextPipeline", _ltx2, _TEXT),
    Recipe("LTX2HDRPipeline", _ltx2, {**_SHORT, "num_inference_steps": 2}),
    Recipe("LTX2DFRPipeline", _keyframes, _SHORT),
    Recipe("LTX2LatentUpsamplePipeline", _latent_upsample, {**_SIZE, "num_frames": 9, "video": Video(9)}),
    Recipe("SanaWMPipeline", _sana_wm, _WALK),
)
