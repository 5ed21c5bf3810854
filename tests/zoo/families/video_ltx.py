"""LTX-Video and Sana's video models, which use the same autoencoder or a like one."""

from typing import Any

from diffusers import LTXVideoTransformer3DModel, SanaVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

from tests.zoo import autoencoders, language, parts
from tests.zoo.recipe import Image, Recipe, Video

_TEXT = {
    "prompt": "a cat walks",
    "negative_prompt": "blue",
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
}
_CHANNELS = 8


def _ltx(**scheduler: Any) -> dict[str, Any]:
    transformer = LTXVideoTransformer3DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=parts.WIDTH,
    )
    return {
        "scheduler": parts.flow_euler(**scheduler),
        "vae": autoencoders.ltx_vae(_CHANNELS),
        "text_encoder": parts.t5(),
        "tokenizer": parts.t5_tokenizer(),
        "transformer": transformer.eval(),
    }


def _ltx_shifted() -> dict[str, Any]:
    return _ltx(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1)


def _ltx_upsampler() -> dict[str, Any]:
    upsampler = LTXLatentUpsamplerModel(in_channels=_CHANNELS, mid_channels=32, num_blocks_per_stage=1)
    return {"vae": autoencoders.ltx_vae(_CHANNELS), "latent_upsampler": upsampler.eval()}


def _sana_video() -> dict[str, Any]:
    transformer = SanaVideoTransformer3DModel(
        in_channels=autoencoders.CHANNELS,
        out_channels=autoencoders.CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=parts.WIDTH,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return {
        "tokenizer": language.gemma_tokenizer(),
        "text_encoder": language.gemma2(),
        "vae": autoencoders.wan_vae(),
        "transformer": transformer.eval(),
        "scheduler": parts.flow_euler(),
    }


# it decodes in tiles that overlap, and these latents are too few for more than one
_LONG = {**_TEXT, "cond_image": Image(), "decode_horizontal_tiles": 1, "decode_vertical_tiles": 1}
_SANA = {name: value for name, value in _TEXT.items() if name != "num_frames"}
_SANA |= {"frames": 5, "use_resolution_binning": False}

RECIPES = (
    Recipe("LTXPipeline", _ltx_shifted, _TEXT),
    Recipe("LTXImageToVideoPipeline", _ltx_shifted, {**_TEXT, "image": Image()}),
    Recipe("LTXConditionPipeline", _ltx, {**_TEXT, "image": Image()}),
    # left to itself it returns latents
    Recipe("LTXI2VLongMultiPromptPipeline", _ltx, _LONG, call={**_LONG, "output_type": "pil"}),
    Recipe("LTXLatentUpsamplePipeline", _ltx_upsampler, {"video": Video(9), "width": 64, "height": 64}),
    Recipe("SanaVideoPipeline", _sana_video, _SANA),
    Recipe("SanaImageToVideoPipeline", _sana_video, {**_SANA, "image": Image()}),
)
