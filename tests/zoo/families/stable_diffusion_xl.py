"""Stable Diffusion XL, and Kolors: its UNet with ChatGLM as the text encoder."""

import atexit
import io
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import IMAGE, INPAINT, REDRAW, SIZED
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Recipe

_UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}


def xl_config(*, pooled: int = WIDTH, ids: int = 6, **changes: object) -> dict[str, Any]:
    """The config of an XL UNet that is told a pooled text and `ids` numbers about sizes, eight wide each."""
    wide = {"cross_attention_dim": 2 * WIDTH, "projection_class_embeddings_input_dim": ids * 8 + pooled}
    return {**_UNET, **wide, **changes}


def sdxl(**unet: object) -> dict[str, Any]:
    """The parts of Stable Diffusion XL."""
    return {
        "vae": parts.vae(scaling_factor=0.13025),
        "text_encoder": parts.clip_text(),
        "text_encoder_2": parts.clip_text_projected(),
        "tokenizer": parts.clip_tokenizer(),
        "tokenizer_2": parts.clip_tokenizer(),
        "unet": parts.unet(**xl_config(**unet)),
        "scheduler": parts.euler(),
    }


def kolors() -> dict[str, Any]:
    """The parts of Kolors."""
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=WIDTH,
        ffn_hidden_size=64,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=256,
        original_rope=True,
        add_qkv_bias=True,
        bias_dropout_fusion=False,
    )
    text_encoder = ChatGLMModel(config).eval()
    parts.fill(text_encoder, "weight", "bias", std=0.2)
    parts.fill(text_encoder, "norm.weight", std=1.0)
    return {
        "vae": parts.vae(scaling_factor=0.13025),
        "text_encoder": text_encoder,
        "tokenizer": _chatglm_tokenizer(),
        "unet": parts.unet(**xl_config(cross_attention_dim=WIDTH)),
        "scheduler": parts.euler(),
    }


def _chatglm_tokenizer() -> ChatGLMTokenizer:
    """A sentencepiece model of single characters, which this tokenizer copies from a file when it is saved."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(string.ascii_letters)]),
        model_writer=model,
        model_type="char",
        vocab_size=80,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    file = Path(tempfile.mkdtemp(prefix="zoo-")) / "tokenizer.model"
    file.write_bytes(model.getvalue())
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    return ChatGLMTokenizer(str(file))


RECIPES = (
    Recipe("StableDiffusionXLPipeline", sdxl, SIZED),
    Recipe("StableDiffusionXLImg2ImgPipeline", sdxl, REDRAW),
    Recipe("StableDiffusionXLInpaintPipeline", lambda: sdxl(in_channels=9), {**INPAINT, "width": 64, "height": 64}),
    Recipe(
        "StableDiffusionXLInstructPix2PixPipeline", lambda: sdxl(in_channels=8), {**IMAGE, "width": 64, "height": 64}
    ),
    Recipe("KolorsPipeline", kolors, {**SIZED, "max_sequence_length": 32}, needs=("sentencepiece",)),
    Recipe("KolorsImg2ImgPipeline", kolors, {**REDRAW, "max_sequence_length": 32}, needs=("sentencepiece",)),
)
