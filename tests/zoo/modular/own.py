"""Families that diffusers has as modular pipelines only."""

from typing import Any

from diffusers import (
    AnimaTextConditioner,
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMiniMaxH3Audio,
    CosmosTransformer3DModel,
    Flux3Transformer2DModel,
    MiniMaxH3Scheduler,
    MiniMaxH3Transformer3DModel,
    WanAnimate2Transformer3DModel,
)

from tests.zoo import autoencoders, language, parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.modular.shared import ordinary
from tests.zoo.recipe import Image, Recipe, Video


def anima() -> dict[str, Any]:
    """Anima's components, with random weights. The prompt counts for much, so that guidance can be seen."""
    width = parts.WIDTH
    conditioner = AnimaTextConditioner(
        source_dim=width,
        target_dim=width,
        model_dim=width,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=1200,
        min_sequence_length=16,
    ).eval()
    conditioner.norm.weight.data *= 50
    return {
        "text_encoder": language.qwen3(),
        "tokenizer": language.qwen_tokenizer(),
        "t5_tokenizer": parts.t5_tokenizer(),
        "text_conditioner": conditioner,
        "transformer": CosmosTransformer3DModel(
            in_channels=autoencoders.CHANNELS,
            out_channels=autoencoders.CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            text_embed_dim=width,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            rope_scale=(1.0, 4.0, 4.0),
            concat_padding_mask=False,  # that half needs torchvision
            extra_pos_embed_type=None,
        ).eval(),
        "vae": autoencoders.qwen_vae(),
        "scheduler": parts.flow_euler(shift=3.0),
    }


def flux3(flow_map: bool = False) -> dict[str, Any]:
    """FLUX.3's components, with random weights, but for what rewrites the prompt: its blocks then read it as it is."""
    return {
        "text_encoder": language.qwen3_vl(num_hidden_layers=33),
        "tokenizer": language.chat_processor(),
        "vae": autoencoders.flux2_vae(),
        "transformer": Flux3Transformer2DModel(
            in_channels=4 * CHANNELS,
            cond_in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8 * parts.WIDTH,
            timestep_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            flow_map=flow_map,
        ).eval(),
    }


def flux3_upsampled() -> dict[str, Any]:
    """FLUX.3's components with the language model that rewrites the prompt."""
    return {
        **flux3(),
        "prompt_upsampler": language.qwen35(),
        "prompt_upsampler_processor": language.chat_processor(),
    }


def _minimax_h3() -> dict[str, Any]:
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=64,
        in_channels=CHANNELS,
        audio_in_channels=CHANNELS,
        text_dim=parts.WIDTH,
        freq_dim=16,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    vae = AutoencoderKLMiniMaxH3(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=16,
        decoder_num_register_tokens=2,
        latents_mean=(0.0,) * CHANNELS,
        latents_std=(1.0,) * CHANNELS,
    )
    sound = AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4,
        latent_dim=128,
        latent_channels=CHANNELS,
        num_attention_heads=2,
        decoder_dim=128,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    return {
        "text_encoder": language.qwen3_vl(num_hidden_layers=51),
        "tokenizer": language.qwen_tokenizer(),
        "processor": language.chat_processor(),
        "vae": vae.eval(),
        "audio_vae": sound.eval(),
        "scheduler": MiniMaxH3Scheduler(),
        "audio_scheduler": MiniMaxH3Scheduler(),
        "transformer": transformer.eval(),
    }


def _wan_animate_2() -> dict[str, Any]:
    transformer = WanAnimate2Transformer3DModel(
        in_dim=2 * CHANNELS + 4,
        dim=32,
        ffn_dim=64,
        freq_dim=16,
        text_dim=parts.WIDTH,
        out_dim=CHANNELS,
        num_heads=2,
        num_layers=2,
    )
    return {
        "text_encoder": language.umt5(),
        "tokenizer": parts.t5_tokenizer(),
        "image_encoder": parts.clip_vision(hidden_size=1280, image_size=224, patch_size=112, intermediate_size=16),
        "vae": autoencoders.wan_vae(),
        "transformer": transformer.eval(),
        "scheduler": parts.flow_euler(shift=5.0),
    }


_ONE = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_GUIDED = {**_ONE, "negative_prompt": "blue", "guidance_scale": 3.0}
_MOVING = {"prompt": "a cat walks", "image": Image(), "driving_video": Video(5), "segment_frame_length": 5}
_MOVING |= {"width": 64, "height": 64, "num_inference_steps": 2}
_ECHO = {"prompt": "a cat walks", "width": 64, "height": 64, "num_frames": 9}

RECIPES: tuple[Recipe, ...] = (
    Recipe("AnimaModularPipeline", anima, _GUIDED, modular=True),
    Recipe("Flux3ModularPipeline", flux3_upsampled, {**_GUIDED, "max_new_tokens": 4}, modular=True),
    Recipe(
        "Flux3DistilledModularPipeline",
        lambda: {**flux3_upsampled(), **flux3(flow_map=True)},
        {**_ONE, "max_new_tokens": 4},
        modular=True,
    ),
    Recipe("EchoModularPipeline", ordinary("LTX2Pipeline"), _ECHO, modular=True),
    Recipe(
        "MiniMaxH3ModularPipeline",
        _minimax_h3,
        {**_ONE, "prompt": "a cat walks", "num_frames": 124},
        needs=("torchvision",),
        modular=True,
    ),
    Recipe("WanAnimate2ModularPipeline", _wan_animate_2, {**_MOVING, "guidance_scale": 2.0}, modular=True),
    Recipe("WanAnimate2DistilledModularPipeline", _wan_animate_2, _MOVING, modular=True),
)
