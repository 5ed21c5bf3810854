"""CogVideoX, ConsisID, Mochi, Allegro and EasyAnimate."""

from typing import Any

from diffusers import (
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
    EasyAnimateTransformer3DModel,
    MochiTransformer3DModel,
)

from tests.zoo import autoencoders, language, parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.recipe import Image, Recipe, Video

_TEXT = {
    "prompt": "a cat walks",
    "negative_prompt": "blue",
    "width": 64,
    "height": 64,
    "num_frames": 5,
    "num_inference_steps": 2,
}
_STILL = {name: value for name, value in _TEXT.items() if name != "num_frames"}
_COG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "out_channels": CHANNELS,
    "time_embed_dim": 8,
    "text_embed_dim": parts.WIDTH,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 226,
}


def _parts(transformer: Any, vae: Any, **others: Any) -> dict[str, Any]:
    usual = {"text_encoder": parts.t5(), "tokenizer": parts.t5_tokenizer(), "scheduler": parts.flow_euler()}
    return {**usual, "transformer": transformer.eval(), "vae": vae.eval(), **others}


def _cogvideox(conditions: int = 0) -> dict[str, Any]:
    transformer = CogVideoXTransformer3DModel(
        **_COG, in_channels=CHANNELS + conditions, use_rotary_positional_embeddings=True
    )
    return _parts(transformer, autoencoders.cogvideox_vae(), scheduler=CogVideoXDDIMScheduler())


def _cogvideox_conditioned() -> dict[str, Any]:
    return _cogvideox(conditions=CHANNELS)


def _consisid() -> dict[str, Any]:
    transformer = ConsisIDTransformer3DModel(**_COG, in_channels=2 * CHANNELS, use_rotary_positional_embeddings=True)
    return _parts(transformer, autoencoders.cogvideox_vae(), scheduler=CogVideoXDDIMScheduler())


def _mochi() -> dict[str, Any]:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=parts.WIDTH,
        time_embed_dim=8,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),  # its norms have 32 groups
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return _parts(transformer, vae, scheduler=parts.flow_euler(invert_sigmas=True))


def _allegro() -> dict[str, Any]:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,  # shared by three axes
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        cross_attention_dim=48,
        sample_height=8,
        sample_width=8,
        sample_frames=2,
        caption_channels=parts.WIDTH,
    )
    vae = AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), latent_channels=CHANNELS, layers_per_block=1, norm_num_groups=4, sample_size=64
    )
    return _parts(transformer, vae, scheduler=parts.euler())


def _easy_animate(channels: int = CHANNELS) -> dict[str, Any]:
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=CHANNELS,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=2,
        mmdit_layers=2,
        time_embed_dim=8,
        add_norm_text_encoder=True,
        text_embed_dim=parts.WIDTH,
        time_position_encoding_type="3d_rope",
    )
    vae = AutoencoderKLMagvit(
        latent_channels=CHANNELS, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=4
    )
    return _parts(transformer, vae, text_encoder=language.qwen2_vl(), tokenizer=language.qwen_tokenizer())


def _easy_animate_control() -> dict[str, Any]:
    return _easy_animate(2 * CHANNELS)


def _easy_animate_inpaint() -> dict[str, Any]:
    return _easy_animate(2 * CHANNELS + 1)


def _tile(pipeline: Any) -> None:
    pipeline.vae.enable_tiling()


RECIPES = (
    Recipe("CogVideoXPipeline", _cogvideox, _TEXT),
    Recipe("CogVideoXFunControlPipeline", _cogvideox_conditioned, {**_STILL, "control_video": Video(5)}),
    Recipe("CogVideoXImageToVideoPipeline", _cogvideox_conditioned, {**_TEXT, "image": Image()}),
    Recipe("CogVideoXVideoToVideoPipeline", _cogvideox, {**_STILL, "video": Video(5), "num_inference_steps": 3}),
    Recipe("ConsisIDPipeline", _consisid, {**_TEXT, "image": Image()}, needs=("cv2",)),
    Recipe("MochiPipeline", _mochi, {**_TEXT, "num_frames": 7}),
    # the autoencoder only decodes in tiles
    Recipe("AllegroPipeline", _allegro, {**_TEXT, "num_frames": 8}, before=_tile),
    Recipe("EasyAnimatePipeline", _easy_animate, _TEXT),
    Recipe(
        "EasyAnimateControlPipeline",
        _easy_animate_control,
        {**_TEXT, "control_video": Video(5)},
        broken="it calls its own `encode_prompt` with an argument that this does not take",
    ),
    Recipe(
        "EasyAnimateInpaintPipeline",
        _easy_animate_inpaint,
        {**_TEXT, "video": Video(5), "mask_video": Video(5)},
        broken="it reads `cache_mag_vae`, which the configuration of its autoencoder does not have",
    ),
)
