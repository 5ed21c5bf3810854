"""Sana: linear attention over latents 32 times smaller than the image, and a prompt read by Gemma 2."""

from typing import Any

from diffusers import SanaControlNetModel, SanaTransformer2DModel, SCMScheduler

from tests.zoo import autoencoders, language, parts
from tests.zoo.recipe import Image, Recipe

# Sana would draw the nearest of its training's sizes, all near a million pixels, and shrink that
_TEXT = {
    "prompt": "a red apple",
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
    "use_resolution_binning": False,
}
_BOTH = {**_TEXT, "negative_prompt": "blue"}
_SIZES = {
    "in_channels": autoencoders.CHANNELS,
    "out_channels": autoencoders.CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": parts.WIDTH,
}


def _sana(**transformer: Any) -> dict[str, Any]:
    return {
        "tokenizer": language.gemma_tokenizer(),
        "text_encoder": language.gemma2(),
        "vae": autoencoders.deep_compression(),
        "transformer": SanaTransformer2DModel(**_SIZES, **transformer).eval(),
        "scheduler": parts.flow_euler(),
    }


def _control() -> dict[str, Any]:
    return {**_sana(), "controlnet": SanaControlNetModel(**(_SIZES | {"num_layers": 1})).eval()}


def _sprint() -> dict[str, Any]:
    return {**_sana(guidance_embeds=True, qk_norm="rms_norm_across_heads"), "scheduler": SCMScheduler()}


RECIPES = (
    Recipe("SanaPipeline", _sana, _BOTH),
    Recipe("SanaPAGPipeline", _sana, _BOTH),
    Recipe("SanaControlNetPipeline", _control, {**_BOTH, "control_image": Image()}),
    Recipe("SanaSprintPipeline", _sprint, _TEXT),
    Recipe("SanaSprintImg2ImgPipeline", _sprint, {**_TEXT, "image": Image(), "strength": 0.8}),
)
