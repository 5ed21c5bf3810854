"""Stable Diffusion 3: two CLIP encoders and a T5 before a transformer."""

from typing import Any

from diffusers import SD3Transformer2DModel

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import INPAINT, REDRAW, SIZED
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Recipe

SD3 = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    # the two CLIP embeddings side by side are as wide as the T5's
    "joint_attention_dim": 2 * WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 2 * WIDTH,
    "pos_embed_max_size": 16,
}


def sd3() -> dict[str, Any]:
    """The parts of Stable Diffusion 3."""
    transformer = SD3Transformer2DModel(**SD3).eval()
    parts.enliven(transformer)
    return {
        "transformer": transformer,
        "scheduler": parts.flow_euler(shift=3.0),
        "vae": parts.vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609),
        "text_encoder": parts.clip_text_projected(),
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder_2": parts.clip_text_projected(),
        "tokenizer_2": parts.clip_tokenizer(),
        "text_encoder_3": parts.t5(2 * WIDTH),
        "tokenizer_3": parts.t5_tokenizer(),
    }


RECIPES = (
    Recipe("StableDiffusion3Pipeline", sd3, SIZED),
    Recipe("StableDiffusion3Img2ImgPipeline", sd3, {**REDRAW, "width": 64, "height": 64}),
    Recipe("StableDiffusion3InpaintPipeline", sd3, {**INPAINT, "strength": 0.8, "width": 64, "height": 64}),
)
