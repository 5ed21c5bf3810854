"""Image transformers with a text encoder of their own choice: T5, Gemma, GLM, Llama, Qwen 3 or several of them."""

from typing import Any

from diffusers import (
    AuraFlowTransformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    HiDreamImageTransformer2DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    OmniGenTransformer2DModel,
    OvisImageTransformer2DModel,
    PRXTransformer2DModel,
)

from tests.zoo import autoencoders, language, parts
from tests.zoo.recipe import Image, Mask, Recipe

_ONE = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_TEXT = {**_ONE, "negative_prompt": "blue"}
_LARGE = {**_TEXT, "width": 128, "height": 128}
_EDIT = '{"edit_instruction": "make the apple red"}'  # the prompt of an edit is JSON
_HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
_CHANNELS = autoencoders.CHANNELS
_PACKED = 4 * _CHANNELS


def _parts(text_encoder: Any, tokenizer: Any, transformer: Any, **others: Any) -> dict[str, Any]:
    usual = {"vae": parts.vae(scaling_factor=0.3611, shift_factor=0.1159), "scheduler": parts.flow_euler(shift=3.0)}
    named = {"text_encoder": text_encoder, "tokenizer": tokenizer, "transformer": transformer.eval()}
    return usual | named | others


def _aura_flow() -> dict[str, Any]:
    transformer = AuraFlowTransformer2DModel(
        **_HEADS,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=parts.WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    return _parts(language.umt5(), parts.t5_tokenizer(), transformer)


def _lumina() -> dict[str, Any]:
    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=parts.WIDTH,
    )
    parts.fill(transformer, "pad_token")
    return _parts(language.gemma(), language.gemma_tokenizer(), transformer)


def _lumina2() -> dict[str, Any]:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=_CHANNELS,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(512, 64, 64),
        cap_feat_dim=parts.WIDTH,
    )
    return _parts(language.gemma2(), language.gemma_tokenizer(), transformer)


_COGVIEW = {"text_embed_dim": parts.WIDTH, "time_embed_dim": 32, "condition_dim": 8, "num_layers": 2, **_HEADS}


def _cogview3() -> dict[str, Any]:
    transformer = CogView3PlusTransformer2DModel(
        **_COGVIEW, in_channels=_CHANNELS, out_channels=_CHANNELS, pos_embed_max_size=64, sample_size=8
    )
    return _parts(parts.t5(), parts.t5_tokenizer(), transformer, scheduler=CogVideoXDDIMScheduler())


def _cogview4(conditions: int = 0) -> dict[str, Any]:
    transformer = CogView4Transformer2DModel(
        **_COGVIEW, in_channels=_CHANNELS + conditions, out_channels=_CHANNELS, sample_size=8, rope_axes_dim=(64, 64)
    )
    scheduler = parts.flow_euler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    return _parts(language.glm(), language.qwen_tokenizer(), transformer, scheduler=scheduler)


def _cogview4_control() -> dict[str, Any]:
    return _cogview4(conditions=_CHANNELS)


def _bria() -> dict[str, Any]:
    transformer = BriaTransformer2DModel(
        **_HEADS,
        in_channels=_PACKED,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=parts.WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    return _parts(parts.t5(), parts.t5_tokenizer(), transformer)


def _bria_fibo() -> dict[str, Any]:
    transformer = BriaFiboTransformer2DModel(
        **_HEADS,
        in_channels=48,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=2 * parts.WIDTH,  # the last two layers of the text encoder, side by side
        axes_dims_rope=[4, 4, 8],
        text_encoder_dim=parts.WIDTH,
    )
    vae = autoencoders.wan22_vae()
    return _parts(language.smollm3(), language.qwen_tokenizer(), transformer, vae=vae)


def _ovis() -> dict[str, Any]:
    transformer = OvisImageTransformer2DModel(
        **_HEADS,
        in_channels=_PACKED,
        out_channels=_PACKED,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=parts.WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = parts.flow_euler(use_dynamic_shifting=True)
    return _parts(language.qwen3(), language.qwen_tokenizer(), transformer, scheduler=scheduler)


def _hidream() -> dict[str, Any]:
    transformer = HiDreamImageTransformer2DModel(
        **_HEADS,
        patch_size=2,
        in_channels=_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        caption_channels=[parts.WIDTH, parts.WIDTH],
        text_emb_dim=2 * parts.WIDTH,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    long = {"max_position_embeddings": 128}  # longer than CLIP was trained with
    return {
        **_parts(parts.clip_text_projected(**long), parts.clip_tokenizer(), transformer),
        "text_encoder_2": parts.clip_text_projected(**long),
        "tokenizer_2": parts.clip_tokenizer(),
        "text_encoder_3": parts.t5(),
        "tokenizer_3": parts.t5_tokenizer(),
        "text_encoder_4": language.llama_lm(),
        "tokenizer_4": language.qwen_tokenizer(),
    }


def _omnigen() -> dict[str, Any]:
    transformer = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        num_layers=2,
        pad_token_id=2,
        vocab_size=language.VOCABULARY,
        pos_embed_max_size=32,
        time_step_dim=16,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "type": "su"},
    )
    made = _parts(None, language.llama_tokenizer(), transformer)
    del made["text_encoder"]
    return made


_PRX = {"context_in_dim": parts.WIDTH, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8]}


def _prx() -> dict[str, Any]:
    transformer = PRXTransformer2DModel(**_PRX, in_channels=_CHANNELS)
    return _parts(language.t5_gemma(), language.gemma_tokenizer(), transformer)


def _prx_pixel() -> dict[str, Any]:
    transformer = PRXTransformer2DModel(**_PRX, in_channels=3, patch_size=8, bottleneck_size=16)
    made = _parts(language.qwen3(), language.qwen_tokenizer(), transformer)
    del made["vae"]
    return made


RECIPES = (
    Recipe("AuraFlowPipeline", _aura_flow, _TEXT),
    Recipe("LuminaPipeline", _lumina, _TEXT),
    Recipe("Lumina2Pipeline", _lumina2, _TEXT),
    Recipe("CogView3PlusPipeline", _cogview3, _LARGE),
    Recipe("CogView4Pipeline", _cogview4, _LARGE),
    Recipe("CogView4ControlPipeline", _cogview4_control, {**_LARGE, "control_image": Image()}),
    Recipe("BriaPipeline", _bria, _TEXT),
    Recipe("BriaFiboPipeline", _bria_fibo, _TEXT),
    Recipe("BriaFiboEditPipeline", _bria_fibo, {**_TEXT, "prompt": _EDIT, "image": Image(), "mask": Mask()}),
    Recipe("OvisImagePipeline", _ovis, _TEXT),
    # HiDream draws a million pixels whatever is asked for
    Recipe("HiDreamImagePipeline", _hidream, {**_TEXT, "num_inference_steps": 1}),
    Recipe("OmniGenPipeline", _omnigen, _ONE, needs=("torchvision",)),
    Recipe("PRXPipeline", _prx, {**_TEXT, "use_resolution_binning": False}),
    Recipe("PRXPixelPipeline", _prx_pixel, {**_TEXT, "use_resolution_binning": False}),
)
