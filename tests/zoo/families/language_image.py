"""Image transformers that read the prompt, and often the image to edit, with a vision-language model."""

from typing import Any

import torch
from diffusers import (
    BriaFibo2Transformer2DModel,
    DreamLiteUNetModel,
    ErnieImageTransformer2DModel,
    GlmImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Krea2Transformer2DModel,
    LongCatImageTransformer2DModel,
    NucleusMoEImageTransformer2DModel,
)
from transformers import Qwen2VLProcessor, Qwen3VLProcessor

from tests.zoo import autoencoders, language, parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.recipe import Image, Recipe

_ONE = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_TEXT = {**_ONE, "negative_prompt": "blue"}
_EDIT = {"prompt": "make it red", "image": Image(), "num_inference_steps": 1}
_HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
_PACKED = 4 * CHANNELS
_NEEDS = ("torchvision",)  # for the video half of Qwen's processors


def _parts(text_encoder: Any, transformer: Any, vae: Any = None, **others: Any) -> dict[str, Any]:
    return {
        "scheduler": parts.flow_euler(shift=3.0),
        "vae": vae or parts.vae(scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": text_encoder,
        "transformer": transformer.eval(),
        **others,
    }


def _fibo2() -> dict[str, Any]:
    transformer = BriaFibo2Transformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=3 * parts.WIDTH,
        injection_layer_ids=(0, 1, 2, 3, 4),
        perceiver_num_layers=1,
        min_num_gist_tokens=16,
        max_num_gist_tokens=32,
        gist_step=16,
        gist_min_text_len=16,
        gist_max_text_len=64,
        axes_dims=(4, 6, 6),
        axes_lens=(2048, 64, 64),
    )
    processor = language.qwen_processor(Qwen3VLProcessor, patch=16)
    return _parts(language.qwen3_vl(num_hidden_layers=36), transformer, autoencoders.flux2_vae(), processor=processor)


def _ernie() -> dict[str, Any]:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=_PACKED,
        out_channels=_PACKED,
        text_in_dim=parts.WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):  # zero at first: words did nothing
        torch.nn.init.normal_(layer.weight)
    tokenizer = language.qwen_tokenizer()
    return _parts(language.mistral3_model(), transformer, autoencoders.flux2_vae(), tokenizer=tokenizer)


def _glm() -> dict[str, Any]:
    codes = 64
    transformer = GlmImageTransformer2DModel(
        **_HEADS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        text_embed_dim=parts.WIDTH,
        time_embed_dim=32,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=codes,
    )
    return _parts(
        language.byt5(),
        transformer,
        parts.vae(latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS),
        tokenizer=language.byt5_tokenizer(),
        processor=language.glm_image_processor(),
        vision_language_encoder=language.glm_image(codes),
    )


def _hunyuan() -> dict[str, Any]:
    transformer = HunyuanImageTransformer2DModel(
        **_HEADS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=parts.WIDTH,
        text_embed_2_dim=parts.WIDTH,
        rope_axes_dim=(8, 8),
    )
    return _parts(
        language.qwen25_vl(num_hidden_layers=3),
        transformer,
        autoencoders.hunyuan_image_vae(),
        tokenizer=language.qwen_tokenizer(),
        text_encoder_2=language.byt5(),
        tokenizer_2=language.byt5_tokenizer(),
    )


def _hunyuan_refiner() -> dict[str, Any]:
    transformer = HunyuanImageTransformer2DModel(
        **_HEADS,
        in_channels=4 * CHANNELS,  # the image to refine beside the noise, both with two frames in one
        out_channels=2 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1, 1),
        text_embed_dim=parts.WIDTH,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=True,
    )
    return _parts(
        language.qwen25_vl(num_hidden_layers=3),
        transformer,
        autoencoders.hunyuan_refiner_vae(),
        tokenizer=language.qwen_tokenizer(),
    )


def _ideogram4() -> dict[str, Any]:
    def transformer() -> Ideogram4Transformer2DModel:
        return Ideogram4Transformer2DModel(
            in_channels=_PACKED,
            num_layers=2,
            **_HEADS,
            intermediate_size=64,
            adaln_dim=32,
            llm_features_dim=13 * parts.WIDTH,  # thirteen of 36 layers of the text encoder, side by side
            mrope_section=(3, 3, 2),
        ).eval()

    return _parts(
        language.qwen3_vl_model(num_hidden_layers=36),
        transformer(),
        autoencoders.flux2_vae(),
        tokenizer=language.qwen_tokenizer(),
        unconditional_transformer=transformer(),
    )


def krea2_transformer(num_text_layers: int = 2) -> Krea2Transformer2DModel:
    """Krea 2's transformer, which takes so many layers of its text encoder."""
    return Krea2Transformer2DModel(
        **_HEADS,
        in_channels=_PACKED,
        num_layers=2,
        num_key_value_heads=1,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=parts.WIDTH,
        num_text_layers=num_text_layers,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def _krea2() -> dict[str, Any]:
    return _parts(
        language.qwen3_vl_model(),
        krea2_transformer(),
        autoencoders.qwen_vae(),
        tokenizer=language.qwen_tokenizer(),
        text_encoder_select_layers=(1, 2),
    )


def _longcat() -> dict[str, Any]:
    transformer = LongCatImageTransformer2DModel(
        **_HEADS,
        in_channels=4 * 16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=parts.WIDTH,
        pooled_projection_dim=parts.WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    processor = language.qwen_processor(Qwen2VLProcessor)
    vae = parts.vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159)
    tokenizer = language.qwen_tokenizer()
    return _parts(language.qwen25_vl(), transformer, vae, tokenizer=tokenizer, text_processor=processor)


def _joy(cls: type = JoyImageEditTransformer3DModel) -> dict[str, Any]:
    transformer = cls(
        in_channels=CHANNELS,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=parts.WIDTH,
        num_layers=2,
        rope_dim_list=[4, 4, 8],
    )
    processor = language.qwen_processor(Qwen3VLProcessor, patch=16)
    tokenizer = language.qwen_tokenizer()
    return _parts(language.qwen3_vl(), transformer, autoencoders.wan_vae(), tokenizer=tokenizer, processor=processor)


def _joy_plus() -> dict[str, Any]:
    return _joy(JoyImageEditPlusTransformer3DModel)


def _nucleus() -> dict[str, Any]:
    transformer = NucleusMoEImageTransformer2DModel(
        **_HEADS,
        in_channels=_PACKED,
        out_channels=CHANNELS,
        num_layers=5,
        num_key_value_heads=1,
        joint_attention_dim=parts.WIDTH,
        axes_dims_rope=(4, 4, 8),
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=[2.0] * 5,
    )
    parts.fill(transformer, "gate_up_proj", "down_proj")
    processor = language.qwen_processor(Qwen3VLProcessor, patch=16)
    # the eighth layer from the end is read
    return _parts(language.qwen3_vl(num_hidden_layers=9), transformer, autoencoders.qwen_vae(), processor=processor)


def _dreamlite() -> dict[str, Any]:
    unet = DreamLiteUNetModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=parts.WIDTH,
        attention_head_dim=8,
        ff_mult=2,
    )
    return {
        "text_encoder": language.qwen3_vl(),
        "tokenizer": language.qwen_tokenizer(),
        "processor": language.qwen_processor(Qwen3VLProcessor, patch=16),
        "vae": parts.taesd(),
        "unet": unet.eval(),
        "scheduler": parts.flow_euler(shift=3.0),
    }


RECIPES = (
    Recipe("BriaFibo2Pipeline", _fibo2, _TEXT, needs=_NEEDS),
    Recipe("DreamLitePipeline", _dreamlite, _TEXT, needs=_NEEDS),
    Recipe("DreamLiteMobilePipeline", _dreamlite, _ONE, needs=_NEEDS),
    Recipe("ErnieImagePipeline", _ernie, _TEXT),
    Recipe("GlmImagePipeline", _glm, _ONE),
    Recipe("HunyuanImagePipeline", _hunyuan, _TEXT),
    Recipe("HunyuanImageRefinerPipeline", _hunyuan_refiner, {**_TEXT, "image": Image()}),
    Recipe(
        "Ideogram4Pipeline",
        _ideogram4,
        _ONE,
        call={**_ONE, "guidance_schedule": None, "guidance_scale": 7.0},
        values={"guidance_schedule": [7.0, 3.0]},
    ),
    Recipe("JoyImageEditPipeline", _joy, _EDIT, needs=_NEEDS),
    Recipe("JoyImageEditPlusPipeline", _joy_plus, {**_ONE, "images": [Image()]}, needs=_NEEDS),
    Recipe("Krea2Pipeline", _krea2, _TEXT),
    Recipe("LongCatImagePipeline", _longcat, {**_TEXT, "enable_prompt_rewrite": False}, needs=_NEEDS),
    Recipe("LongCatImageEditPipeline", _longcat, _EDIT, needs=_NEEDS),
    Recipe("NucleusMoEImagePipeline", _nucleus, _TEXT, needs=_NEEDS),
)
