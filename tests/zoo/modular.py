"""Families that diffusers has as modular pipelines only."""

from typing import Any

from diffusers import AnimaTextConditioner, CosmosTransformer3DModel

from tests.zoo import autoencoders, language, parts


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
