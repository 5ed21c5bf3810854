"""Kandinsky 2.1, 2.2 and 3. Of the first two the combined pipelines: their stages hand embeddings to each other."""

from typing import Any

from diffusers import Kandinsky3UNet, VQModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import INPAINT, REDRAW, SIZED, unclip_prior
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Recipe

_FEW = {"prior_num_inference_steps": 2}


def _prior() -> dict[str, Any]:
    return {
        "prior_prior": unclip_prior(),
        "prior_image_encoder": parts.clip_vision_projected(),
        "prior_text_encoder": parts.clip_text_projected(),
        "prior_tokenizer": parts.clip_tokenizer(),
        "prior_scheduler": parts.unclip_scheduler(),
        "prior_image_processor": parts.clip_image_processor(),
    }


def _decoder(kind: dict[str, Any], in_channels: int) -> dict[str, Any]:
    unet = parts.unet(
        in_channels=in_channels,
        out_channels=8,  # the noise and its variance
        encoder_hid_dim=WIDTH,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        **kind,
    )
    return {"unet": unet, "scheduler": parts.ddpm(variance_type="learned_range"), "movq": _movq()}


def _movq() -> VQModel:
    return VQModel(
        block_out_channels=(32, 32, 32, 32),  # spatial norm is in groups of 32
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=32,
        norm_type="spatial",
    ).eval()


def _kandinsky21(in_channels: int = 4) -> dict[str, Any]:
    words = MCLIPConfig(
        transformerDimSize=WIDTH,
        imageDimSize=WIDTH,
        vocab_size=100,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=80,
    )
    told = {"encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}
    text = {"text_encoder": MultilingualCLIP(words).eval(), "tokenizer": parts.xlm_roberta_tokenizer()}
    return {**text, **_decoder(told, in_channels), **_prior()}


def _kandinsky22(in_channels: int = 4) -> dict[str, Any]:
    told = {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
    return {**_decoder(told, in_channels), **_prior()}


def _kandinsky3() -> dict[str, Any]:
    unet = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=32,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 16, 32, 32),
        cross_attention_dim=32,
        encoder_hid_dim=WIDTH,
    )
    return {
        "tokenizer": parts.t5_tokenizer(),
        "text_encoder": parts.t5(),
        "unet": unet.eval(),
        "scheduler": parts.ddpm(),
        "movq": _movq(),
    }


RECIPES = (
    Recipe("KandinskyCombinedPipeline", _kandinsky21, {**SIZED, **_FEW}),
    Recipe("KandinskyImg2ImgCombinedPipeline", _kandinsky21, {**REDRAW, **_FEW, "width": 64, "height": 64}),
    Recipe(
        "KandinskyInpaintCombinedPipeline",
        lambda: _kandinsky21(in_channels=9),
        {**INPAINT, **_FEW, "width": 64, "height": 64},
    ),
    Recipe("KandinskyV22CombinedPipeline", _kandinsky22, {**SIZED, **_FEW}),
    Recipe("KandinskyV22Img2ImgCombinedPipeline", _kandinsky22, {**REDRAW, **_FEW, "width": 64, "height": 64}),
    Recipe(
        "KandinskyV22InpaintCombinedPipeline",
        lambda: _kandinsky22(in_channels=9),
        {**INPAINT, **_FEW, "width": 64, "height": 64},
    ),
    Recipe("Kandinsky3Pipeline", _kandinsky3, SIZED),
    Recipe("Kandinsky3Img2ImgPipeline", _kandinsky3, REDRAW),
)
