"""The first diffusion transformers: Hunyuan-DiT, PixArt and Latte."""

from typing import Any

from diffusers import HunyuanDiT2DModel, LatteTransformer3DModel, PixArtTransformer2DModel
from transformers import BertConfig, BertModel

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import NO_CHECKER, SIZED
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Recipe

HUNYUAN = {
    "sample_size": 8,
    "in_channels": 4,
    "patch_size": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "hidden_size": 32,
    "num_layers": 4,
    "learn_sigma": True,
    "cross_attention_dim": WIDTH,
    "cross_attention_dim_t5": WIDTH,
    "pooled_projection_dim": 16,
    "text_len": 77,
    "text_len_t5": 256,
}
UNBINNED = {**SIZED, "use_resolution_binning": False}


def hunyuan_dit() -> dict[str, Any]:
    """The parts of Hunyuan-DiT."""
    bert = BertConfig(
        vocab_size=200, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return {
        "vae": parts.vae(),
        "text_encoder": BertModel(bert).eval(),
        "tokenizer": parts.bert_tokenizer(),
        "transformer": HunyuanDiT2DModel(**HUNYUAN).eval(),
        "scheduler": parts.ddpm(),
        "text_encoder_2": parts.t5(),
        "tokenizer_2": parts.t5_tokenizer(),
        **NO_CHECKER,
    }


def pixart() -> dict[str, Any]:
    """The parts of PixArt."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=WIDTH,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
    )
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": parts.t5(),
        "vae": parts.vae(),
        "transformer": transformer.eval(),
        "scheduler": parts.ddim(),
    }


def _latte() -> dict[str, Any]:
    transformer = LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=4,
    )
    return {**pixart(), "transformer": transformer.eval()}


RECIPES = (
    Recipe("HunyuanDiTPipeline", hunyuan_dit, UNBINNED),
    Recipe("PixArtAlphaPipeline", pixart, UNBINNED),
    Recipe("PixArtSigmaPipeline", pixart, UNBINNED),
    Recipe("LattePipeline", _latte, {**SIZED, "num_frames": 4}, call={**SIZED, "video_length": 4}),
)
