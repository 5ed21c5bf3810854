"""Qwen-Image, its editors and ControlNets."""

from typing import Any

from diffusers import QwenImage21Transformer2DModel, QwenImageControlNetModel, QwenImageTransformer2DModel
from transformers import Qwen2VLProcessor, Qwen3VLProcessor

from tests.zoo import autoencoders, language, parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.recipe import Image, Mask, Recipe

_TEXT = {"prompt": "a red apple", "negative_prompt": "blue", "width": 64, "height": 64, "num_inference_steps": 2}
_IMAGE = {**_TEXT, "image": Image(), "strength": 0.8, "num_inference_steps": 3}
_CONTROL = {**_TEXT, "control_image": Image(seed=1)}
_PACKED = 4 * CHANNELS
_NEEDS = ("torchvision",)  # for the video half of the processor
_SIZES = {
    "patch_size": 2,
    "in_channels": _PACKED,
    "out_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": parts.WIDTH,
    "axes_dims_rope": (4, 4, 8),
}


def _qwen(**transformer: Any) -> dict[str, Any]:
    return {
        "scheduler": parts.flow_euler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoders.qwen_vae(),
        "text_encoder": language.qwen25_vl(),
        "tokenizer": language.qwen_tokenizer(),
        "transformer": QwenImageTransformer2DModel(**(_SIZES | transformer)).eval(),
    }


def _control(**controlnet: Any) -> dict[str, Any]:
    return {**_qwen(), "controlnet": QwenImageControlNetModel(**_SIZES, **controlnet).eval()}


def _control_inpaint() -> dict[str, Any]:
    return _control(extra_condition_channels=4)  # the mask, packed


def _edit(**transformer: Any) -> dict[str, Any]:
    return {**_qwen(**transformer), "processor": language.qwen_processor(Qwen2VLProcessor)}


def _layered() -> dict[str, Any]:
    channels = 8  # four would be taken for latents: that is how many an image with transparency has
    transparent = autoencoders.qwen_vae(channels, input_channels=4)
    sizes = {"in_channels": 4 * channels, "out_channels": channels}
    return {**_edit(use_additional_t_cond=True, use_layer3d_rope=True, **sizes), "vae": transparent}


def _qwen21() -> dict[str, Any]:
    return {
        "scheduler": parts.flow_euler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoders.qwen21_vae(),
        "text_encoder": language.qwen3_vl(),
        "processor": language.qwen_processor(Qwen3VLProcessor, patch=16),
        "transformer": QwenImage21Transformer2DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=parts.WIDTH,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    }


RECIPES = (
    Recipe("QwenImagePipeline", _qwen, _TEXT),
    Recipe("QwenImageImg2ImgPipeline", _qwen, _IMAGE),
    Recipe("QwenImageInpaintPipeline", _qwen, {**_IMAGE, "mask_image": Mask()}),
    Recipe("QwenImageControlNetPipeline", _control, _CONTROL),
    Recipe("QwenImageControlNetInpaintPipeline", _control_inpaint, {**_CONTROL, "control_mask": Mask()}),
    # the editors bring the image to some 1024x1024, whatever its size
    Recipe("QwenImageEditPipeline", _edit, {**_TEXT, "image": Image(), "num_inference_steps": 1}, needs=_NEEDS),
    Recipe(
        "QwenImageEditInpaintPipeline",
        _edit,
        {**_IMAGE, "mask_image": Mask(), "num_inference_steps": 1, "strength": 1.0},
        needs=_NEEDS,
    ),
    Recipe(
        "QwenImageEditPlusPipeline",
        _edit,
        {**_TEXT, "image": [Image(), Image(seed=1)], "num_inference_steps": 1},
        needs=_NEEDS,
    ),
    Recipe(
        "QwenImageLayeredPipeline",
        _layered,
        {"prompt": "a red apple", "image": Image(mode="RGBA"), "layers": 1, "num_inference_steps": 1},
        needs=_NEEDS,
    ),
    # the tiny processor shrinks what is larger than output_resolution, and the transformer would miss image tokens
    Recipe(
        "QwenImage21Pipeline",
        _qwen21,
        {**_TEXT, "image": [Image(), Image(seed=1)], "output_resolution": 64},
        needs=_NEEDS,
    ),
)
