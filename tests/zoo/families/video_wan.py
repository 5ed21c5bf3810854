"""Wan and the video models that share its transformer's design and its autoencoder."""

from typing import Any

from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    HeliosScheduler,
    HeliosTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from tests.zoo import autoencoders, language, parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.recipe import Image, Recipe, Video

_TEXT = {
    "prompt": "a cat walks",
    "negative_prompt": "blue",
    "width": 64,
    "height": 64,
    "num_frames": 5,
    "num_inference_steps": 2,
}
_IMAGE = {**_TEXT, "image": Image()}
_STILL = {name: value for name, value in _TEXT.items() if name != "num_frames"}
_VIDEO = {**_STILL, "video": Video(5)}
_FTFY = ("ftfy",)
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": parts.WIDTH,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
}
# noise, the first frame's latents, and of four frames which are given
_WITH_FRAME = {"in_channels": 3 * CHANNELS, "image_dim": parts.WIDTH}


def _parts(transformer: Any, scheduler: Any = None, **others: Any) -> dict[str, Any]:
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": language.umt5(),
        "vae": autoencoders.wan_vae(),
        "scheduler": scheduler or parts.unipc(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        "transformer": transformer.eval(),
        **others,
    }


def _eyes() -> dict[str, Any]:
    return {"image_encoder": parts.clip_vision(), "image_processor": parts.clip_image_processor()}


def _wan() -> dict[str, Any]:
    return _parts(WanTransformer3DModel(**SIZES))


def _wan_image() -> dict[str, Any]:
    return _parts(WanTransformer3DModel(**(SIZES | _WITH_FRAME)), **_eyes())


def _vace() -> dict[str, Any]:
    # latents of what is to be kept and of what is not, and a mask of eight by eight pixels
    return _parts(WanVACETransformer3DModel(**SIZES, vace_layers=[0], vace_in_channels=2 * CHANNELS + 64))


def _animate() -> dict[str, Any]:
    transformer = WanAnimateTransformer3DModel(
        **(SIZES | _WITH_FRAME),
        latent_channels=CHANNELS,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8, "32": 8, "64": 8},
        motion_encoder_size=64,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    return _parts(transformer, **_eyes())


def _lucy() -> dict[str, Any]:
    return _parts(WanTransformer3DModel(**(SIZES | {"in_channels": 2 * CHANNELS})))


def _chrono_edit() -> dict[str, Any]:
    return _parts(ChronoEditTransformer3DModel(**(SIZES | _WITH_FRAME)), **_eyes())


def _sky_reels() -> dict[str, Any]:
    return _parts(SkyReelsV2Transformer3DModel(**SIZES))


def _sky_reels_image() -> dict[str, Any]:
    return _parts(SkyReelsV2Transformer3DModel(**(SIZES | _WITH_FRAME)), **_eyes())


def _sky_reels_forcing() -> dict[str, Any]:
    return _parts(SkyReelsV2Transformer3DModel(**SIZES, inject_sample_info=True))


def _any_flow() -> dict[str, Any]:
    return _parts(AnyFlowTransformer3DModel(**SIZES), FlowMapEulerDiscreteScheduler(shift=5.0))


def _any_flow_far() -> dict[str, Any]:
    transformer = AnyFlowFARTransformer3DModel(**SIZES, full_chunk_limit=2, chunk_partition=(1, 1))
    return _parts(transformer, FlowMapEulerDiscreteScheduler(shift=5.0))


def _helios(**scheduler: Any) -> dict[str, Any]:
    sizes = {name: size for name, size in SIZES.items() if name != "rope_max_seq_len"}
    return _parts(HeliosTransformer3DModel(**sizes, rope_dim=(8, 4, 4)), HeliosScheduler(**scheduler))


_NO_LAST = {"last_image": None}  # only some of these weights have room for it

RECIPES = (
    Recipe("WanPipeline", _wan, _TEXT),
    Recipe("WanImageToVideoPipeline", _wan_image, _IMAGE, needs=_FTFY, values=_NO_LAST),
    Recipe("WanVideoToVideoPipeline", _wan, {**_VIDEO, "strength": 0.8, "num_inference_steps": 3}, needs=_FTFY),
    Recipe("WanVACEPipeline", _vace, {**_TEXT, "video": Video(5)}, needs=_FTFY),
    Recipe(
        "WanAnimatePipeline",
        _animate,
        {**_STILL, "image": Image(), "pose_video": Video(5), "face_video": Video(5), "segment_frame_length": 5},
        needs=_FTFY,
    ),
    Recipe("LucyEditPipeline", _lucy, {**_TEXT, "video": Video(5)}, needs=_FTFY),
    Recipe("ChronoEditPipeline", _chrono_edit, _IMAGE, needs=_FTFY),
    Recipe("SkyReelsV2Pipeline", _sky_reels, _TEXT, needs=_FTFY),
    Recipe("SkyReelsV2ImageToVideoPipeline", _sky_reels_image, _IMAGE, needs=_FTFY, values=_NO_LAST),
    Recipe("SkyReelsV2DiffusionForcingPipeline", _sky_reels_forcing, _TEXT, needs=_FTFY),
    Recipe("SkyReelsV2DiffusionForcingImageToVideoPipeline", _sky_reels_forcing, _IMAGE, needs=_FTFY),
    Recipe(
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        _sky_reels_forcing,
        {**_TEXT, "video": Video(5), "num_frames": 9, "overlap_history": 1},
        needs=_FTFY,
    ),
    Recipe("AnyFlowPipeline", _any_flow, _TEXT),
    Recipe("AnyFlowFARPipeline", _any_flow_far, _TEXT, values={"chunk_partition": [1, 1]}),
    Recipe("HeliosPipeline", lambda: _helios(stages=1), {**_TEXT, "num_latent_frames_per_chunk": 2}, needs=_FTFY),
    Recipe(
        "HeliosPyramidPipeline",
        lambda: _helios(gamma=0.3),  # with the default of a third its noise's covariance is singular in float32
        {
            **{name: value for name, value in _TEXT.items() if name != "num_inference_steps"},
            "num_latent_frames_per_chunk": 2,
            "pyramid_num_inference_steps_list": [1, 1, 1],
        },
        needs=_FTFY,
    ),
)
