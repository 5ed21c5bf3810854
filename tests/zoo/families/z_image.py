"""Z-Image, and FLUX.2 which also reads a prompt with Qwen 3 (or Mistral 3)."""

from typing import Any

from diffusers import (
    Flux2Transformer2DModel,
    ZImageControlNetModel,
    ZImageTransformer2DModel,
)
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from tests.zoo import autoencoders, language, parts
from tests.zoo.recipe import Image, Mask, Recipe

_TEXT = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_BOTH = {**_TEXT, "negative_prompt": "blue"}
_IMAGE = {**_BOTH, "image": Image(), "strength": 0.8, "num_inference_steps": 3}
_CONTROL = {"control_image": Image(seed=1)}
_SIZES = {"dim": parts.WIDTH, "n_heads": 2, "n_kv_heads": 2, "n_refiner_layers": 1}
_CHANNELS = 4


def _z_image(**transformer: Any) -> dict[str, Any]:
    return {
        "scheduler": parts.flow_euler(shift=3.0),
        "vae": parts.vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": language.qwen3(),
        "tokenizer": language.qwen_tokenizer(),
        "transformer": ZImageTransformer2DModel(
            **_SIZES,
            in_channels=_CHANNELS,
            n_layers=2,
            cap_feat_dim=parts.WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
            **transformer,
        ).eval(),
    }


def _z_control(channels: int = _CHANNELS) -> dict[str, Any]:
    controlnet = ZImageControlNetModel(
        **_SIZES, control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=channels
    )
    return {**_z_image(), "controlnet": controlnet.eval()}


def _z_control_inpaint() -> dict[str, Any]:
    return _z_control(2 * _CHANNELS + 1)  # the control image, the mask, and what the mask leaves


def _z_omni() -> dict[str, Any]:
    tower = Siglip2VisionConfig(
        hidden_size=parts.WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_patches=16,
        patch_size=16,
    )
    return {
        **_z_image(siglip_feat_dim=parts.WIDTH),
        "siglip": Siglip2VisionModel(tower).eval(),
        "siglip_processor": Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    }


def _flux2(text_encoder: Any, tokenizer: Any, guidance: bool = False) -> dict[str, Any]:
    return {
        "scheduler": parts.flow_euler(shift=3.0, use_dynamic_shifting=True),
        "vae": autoencoders.flux2_vae(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": Flux2Transformer2DModel(
            in_channels=4 * _CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * parts.WIDTH,  # three layers of the text encoder, side by side
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        ).eval(),
    }


def _flux2_klein() -> dict[str, Any]:
    return _flux2(language.qwen3_lm(num_hidden_layers=27), language.qwen_tokenizer())


def _flux2_dev() -> dict[str, Any]:
    # published repositories have a PixtralProcessor, which needs torchvision; drawing only uses its chat template
    return _flux2(language.mistral3(num_hidden_layers=30), language.qwen_tokenizer(), guidance=True)


RECIPES = (
    Recipe("ZImagePipeline", _z_image, _BOTH),
    Recipe("ZImageImg2ImgPipeline", _z_image, _IMAGE),
    Recipe("ZImageInpaintPipeline", _z_image, {**_IMAGE, "mask_image": Mask()}),
    Recipe("ZImageControlNetPipeline", _z_control, {**_BOTH, **_CONTROL}),
    Recipe(
        "ZImageControlNetInpaintPipeline",
        _z_control_inpaint,
        {**_BOTH, **_CONTROL, "image": Image(), "mask_image": Mask()},
    ),
    Recipe("ZImageOmniPipeline", _z_omni, _BOTH),
    # Its writer is too small to write a better prompt.
    Recipe("Flux2Pipeline", _flux2_dev, _TEXT, values={"caption_upsample_temperature": None}),
    Recipe("Flux2KleinPipeline", _flux2_klein, {**_TEXT, "image": Image()}),
    Recipe("Flux2KleinInpaintPipeline", _flux2_klein, {**_TEXT, "image": Image(), "mask_image": Mask()}),
    Recipe("Flux2KleinKVPipeline", _flux2_klein, {**_TEXT, "image": Image()}),
)
