"""FLUX.1 and its editors, Chroma and VisualCloze, which share its transformer's design."""

from typing import Any

from diffusers import ChromaTransformer2DModel, FluxControlNetModel, FluxTransformer2DModel

from tests.zoo import parts
from tests.zoo.recipe import Image, Mask, Recipe

_TEXT = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_IMAGE = {**_TEXT, "image": Image(), "strength": 0.8, "num_inference_steps": 3}
_INPAINT = {**_IMAGE, "mask_image": Mask()}
_CONTROL = {"control_image": Image(seed=1)}
_GRID = {
    "task_prompt": "Each row shows an image and its edges.",
    "content_prompt": "a red apple",
    # one row of examples, and the row whose second image is asked for
    "image": [[Image(32, 32), Image(32, 32, seed=1)], [Image(32, 32, seed=2), None]],
    "num_inference_steps": 2,
}
_PACKED = 16  # four channels of two by two latents
_MASK = 256  # a mask of two by two latents, each of eight by eight pixels


def _transformer(**changes: Any) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(**(_SIZES | {"guidance_embeds": True} | changes)).eval()
    parts.enliven(transformer, factor=12.0)
    return transformer


def _flux(**transformer: Any) -> dict[str, Any]:
    return {
        "scheduler": parts.flow_euler(shift=3.0, use_dynamic_shifting=True),
        "vae": parts.vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": parts.clip_text(),
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder_2": parts.t5(),
        "tokenizer_2": parts.t5_tokenizer(),
        "transformer": _transformer(**transformer),
    }


def _kontext() -> dict[str, Any]:
    thin = parts.vae(block_out_channels=(4, 4, 4, 4), scaling_factor=0.3611, shift_factor=0.1159)
    return {**_flux(), "vae": thin}  # a million pixels go through it


def _control() -> dict[str, Any]:
    return _flux(in_channels=2 * _PACKED, out_channels=_PACKED)


def _fill() -> dict[str, Any]:
    return _flux(in_channels=2 * _PACKED + _MASK, out_channels=_PACKED)


def _controlnet() -> dict[str, Any]:
    return {**_flux(), "controlnet": FluxControlNetModel(**_SIZES, guidance_embeds=True).eval()}


def _visual_cloze() -> dict[str, Any]:
    return {**_fill(), "resolution": 32}


def _chroma() -> dict[str, Any]:
    sizes = {name: size for name, size in _SIZES.items() if name != "pooled_projection_dim"}
    transformer = ChromaTransformer2DModel(
        **sizes, approximator_num_channels=64, approximator_hidden_dim=32, approximator_layers=1
    ).eval()
    return {
        "scheduler": parts.flow_euler(),
        "vae": parts.vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": parts.t5(),
        "tokenizer": parts.t5_tokenizer(),
        "transformer": transformer,
    }


_SIZES = {
    "patch_size": 1,
    "in_channels": _PACKED,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": parts.WIDTH,
    "pooled_projection_dim": parts.WIDTH,
    "axes_dims_rope": (4, 4, 8),
}

RECIPES = (
    Recipe("FluxPipeline", _flux, {**_TEXT, "negative_prompt": "blue", "true_cfg_scale": 2.0}),
    Recipe("FluxImg2ImgPipeline", _flux, _IMAGE),
    Recipe("FluxInpaintPipeline", _flux, _INPAINT),
    Recipe("FluxControlPipeline", _control, {**_TEXT, **_CONTROL}),
    Recipe("FluxControlImg2ImgPipeline", _control, {**_IMAGE, **_CONTROL}),
    Recipe("FluxControlInpaintPipeline", _control, {**_INPAINT, **_CONTROL}),
    Recipe("FluxControlNetPipeline", _controlnet, {**_TEXT, **_CONTROL}),
    Recipe("FluxControlNetImg2ImgPipeline", _controlnet, {**_IMAGE, **_CONTROL}),
    Recipe("FluxControlNetInpaintPipeline", _controlnet, {**_INPAINT, **_CONTROL}),
    Recipe("FluxFillPipeline", _fill, {**_TEXT, "image": Image(), "mask_image": Mask()}),
    # the image to edit is brought to some 1024x1024 whatever its size; `max_area` is for the one that is drawn,
    # and one that is painted anew in part keeps the size of the first
    Recipe("FluxKontextPipeline", _kontext, {**_TEXT, "image": Image(), "max_area": 64 * 64, "num_inference_steps": 1}),
    Recipe("FluxKontextInpaintPipeline", _kontext, {**_INPAINT, "strength": 1.0, "num_inference_steps": 1}),
    Recipe("VisualClozePipeline", _visual_cloze, {**_GRID, "upsampling_width": 64, "upsampling_height": 64}),
    Recipe("VisualClozeGenerationPipeline", _visual_cloze, _GRID),
    Recipe("ChromaPipeline", _chroma, {**_TEXT, "negative_prompt": "blue"}),
    Recipe("ChromaImg2ImgPipeline", _chroma, {**_IMAGE, "negative_prompt": "blue"}),
    Recipe(
        "ChromaInpaintPipeline",
        _chroma,
        {**_INPAINT, "negative_prompt": "blue"},
        broken="it reads `guidance_embeds`, which the configuration of Chroma's transformer does not have",
    ),
)
