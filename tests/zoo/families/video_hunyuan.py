"""HunyuanVideo 1 and 1.5, and the two later Kandinskys and Motif-Video, which have their autoencoders or encoders."""

from typing import Any

from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    Kandinsky5Transformer3DModel,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6SRVAE,
    Kandinsky6Transformer3DModel,
    MotifVideoTransformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from transformers import CLIPImageProcessor, Qwen2_5_VLProcessor, Qwen2VLProcessor

from tests.zoo import autoencoders, language, parts, vision
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
_IMAGE = {**_TEXT, "image": Image()}
_STILL = {name: value for name, value in _TEXT.items() if name != "num_frames"}
_SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": parts.WIDTH,
    "rope_axes_dim": (4, 6, 6),
}


def _clip() -> dict[str, Any]:
    return {"text_encoder_2": parts.clip_text(), "tokenizer_2": parts.clip_tokenizer()}


def _hunyuan(cls: type = HunyuanVideoTransformer3DModel, **changes: Any) -> dict[str, Any]:
    channels = {"in_channels": CHANNELS, "out_channels": CHANNELS, "pooled_projection_dim": parts.WIDTH}
    return {
        **_clip(),
        "text_encoder": language.llama(num_hidden_layers=3),  # the third layer from the end is read
        "tokenizer": language.llama_tokenizer(),
        "transformer": cls(**(_SIZES | channels | changes)).eval(),
        "vae": autoencoders.hunyuan_video_vae(),
        "scheduler": parts.flow_euler(shift=7.0),
    }


def _sky_reels() -> dict[str, Any]:
    return _hunyuan(in_channels=2 * CHANNELS)


def _framepack() -> dict[str, Any]:
    eyes = {"image_encoder": vision.siglip(), "feature_extractor": vision.siglip_processor()}
    framepack = {"has_image_proj": True, "image_proj_dim": parts.WIDTH, "has_clean_x_embedder": True}
    return {**_hunyuan(HunyuanVideoFramepackTransformer3DModel, **framepack), **eyes}


def _hunyuan_image() -> dict[str, Any]:
    made = _hunyuan(in_channels=2 * CHANNELS + 1, image_condition_type="latent_concat", guidance_embeds=False)
    images = CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96})
    return {**made, "text_encoder": language.llava(num_hidden_layers=3), "image_processor": images}


def _hunyuan15(task: str = "t2v") -> dict[str, Any]:
    sizes = {name: size for name, size in _SIZES.items() if name != "num_single_layers"}
    transformer = HunyuanVideo15Transformer3DModel(
        **sizes,
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        text_embed_2_dim=parts.WIDTH,
        image_embed_dim=parts.WIDTH,
        target_size=64,
        task_type=task,
    )
    return {
        "text_encoder": language.qwen25_vl_text(num_hidden_layers=3),
        "tokenizer": language.qwen_tokenizer(),
        "transformer": transformer.eval(),
        "vae": autoencoders.hunyuan15_vae(),
        "scheduler": parts.flow_euler(shift=7.0),
        "text_encoder_2": language.byt5(),
        "tokenizer_2": language.byt5_tokenizer(),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def _hunyuan15_image() -> dict[str, Any]:
    eyes = {"image_encoder": vision.siglip(), "feature_extractor": vision.siglip_processor()}
    return {**_hunyuan15("i2v"), **eyes}


def _kandinsky5(vae: Any = None, **transformer: Any) -> dict[str, Any]:
    made = Kandinsky5Transformer3DModel(
        in_visual_dim=CHANNELS,
        out_visual_dim=CHANNELS,
        in_text_dim=parts.WIDTH,
        in_text_dim2=parts.WIDTH,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        **transformer,
    )
    return {
        **_clip(),
        "text_encoder": language.qwen25_vl(),
        "tokenizer": language.qwen_processor(Qwen2VLProcessor),
        "transformer": made.eval(),
        "vae": vae or parts.vae(),
        "scheduler": parts.flow_euler(shift=5.0),
    }


def _kandinsky5_video() -> dict[str, Any]:
    return _kandinsky5(autoencoders.hunyuan_video_vae())


def _kandinsky5_video_of_image() -> dict[str, Any]:
    return _kandinsky5(autoencoders.hunyuan_video_vae(), visual_cond=True)


def _kandinsky5_edit() -> dict[str, Any]:
    return _kandinsky5(visual_cond=True)


def _kandinsky6() -> dict[str, Any]:
    made = _kandinsky5(autoencoders.hunyuan_video_vae())
    sizes = {"model_dim": 32, "ff_dim": 64, "time_dim": 16, "num_text_blocks": 1, "num_visual_blocks": 1}
    transformer = Kandinsky6Transformer3DModel(
        **sizes,
        in_visual_dim=CHANNELS,
        out_visual_dim=CHANNELS,
        in_text_dim=parts.WIDTH,
        in_text_dim2=parts.WIDTH,
        axes_dims=(4, 6, 6),
        visual_token_type_num_embeddings=2,
        in_audio_dim=4,
        out_audio_dim=4,
    )
    processor = language.qwen_processor(Qwen2_5_VLProcessor)
    return {**made, "transformer": transformer.eval(), "tokenizer": processor}


def _kandinsky6_larger() -> dict[str, Any]:
    transformer = Kandinsky6SRTransformer3DModel(
        in_visual_dim=8,
        out_visual_dim=8,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        nabla_window=(3, 3, 3),
        tile_sizes=((128, 128),),
    )
    widths = (16, 16, 16, 16, 16)
    vae = Kandinsky6SRVAE(
        latent_channels=8, encoder_block_out_channels=widths, decoder_block_out_channels=widths, layers_per_block=1
    )
    return {"transformer": transformer.eval(), "vae": vae.eval(), "scheduler": parts.flow_euler(shift=5.0)}


def _motif(**transformer: Any) -> dict[str, Any]:
    sizes = {name: size for name, size in _SIZES.items() if name != "num_refiner_layers"}
    made = MotifVideoTransformer3DModel(
        **sizes, in_channels=2 * CHANNELS + 1, out_channels=CHANNELS, num_decoder_layers=1, **transformer
    )
    return {
        "scheduler": parts.flow_euler(),
        "vae": autoencoders.wan_vae(),
        "text_encoder": language.t5_gemma2(),
        "tokenizer": language.gemma_tokenizer(),
        "transformer": made.eval(),
        "guider": ClassifierFreeGuidance(guidance_scale=5.0),
    }


def _motif_image() -> dict[str, Any]:
    return {**_motif(image_embed_dim=parts.WIDTH), "feature_extractor": vision.siglip_processor()}


_NEEDS = ("torchvision",)  # for the video half of Qwen's processor

RECIPES = (
    Recipe("HunyuanVideoPipeline", _hunyuan, {**_TEXT, "true_cfg_scale": 2.0}),
    Recipe("HunyuanSkyreelsImageToVideoPipeline", _sky_reels, _IMAGE),
    Recipe("HunyuanVideoFramepackPipeline", _framepack, {**_IMAGE, "latent_window_size": 2}),
    # the first four frames are the image, and are cut off
    Recipe("HunyuanVideoImageToVideoPipeline", _hunyuan_image, {**_IMAGE, "num_frames": 9}),
    Recipe("HunyuanVideo15Pipeline", _hunyuan15, _TEXT),
    Recipe(
        "HunyuanVideo15ImageToVideoPipeline",
        _hunyuan15_image,
        {"prompt": "a cat walks", "image": Image(), "num_frames": 5, "num_inference_steps": 1},
    ),
    Recipe("Kandinsky5T2IPipeline", _kandinsky5, _STILL, needs=_NEEDS),
    Recipe("Kandinsky5I2IPipeline", _kandinsky5_edit, {**_STILL, "image": Image()}, needs=_NEEDS),
    Recipe("Kandinsky5T2VPipeline", _kandinsky5_video, _TEXT, needs=_NEEDS),
    Recipe("Kandinsky5I2VPipeline", _kandinsky5_video_of_image, _IMAGE, needs=_NEEDS),
    Recipe("Kandinsky6TI2VAPipeline", _kandinsky6, {**_IMAGE, "sample_audio": False}, needs=_NEEDS),
    Recipe(
        "Kandinsky6SRPipeline",
        _kandinsky6_larger,
        {"video": Video(5), "resolution_scale": 2, "num_inference_steps": 1},
    ),
    Recipe("MotifVideoPipeline", _motif, _TEXT),
    Recipe("MotifVideoImage2VideoPipeline", _motif_image, _IMAGE),
)
