"""Models of text and image at once: Versatile Diffusion, UniDiffuser, BLIP-Diffusion."""

from typing import Any

import torch
from diffusers.pipelines.deprecated.unidiffuser.modeling_text_decoder import UniDiffuserTextDecoder
from diffusers.pipelines.deprecated.unidiffuser.modeling_uvit import UniDiffuserModel
from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel
from transformers import GPT2Tokenizer

from tests.builders import byte_units
from tests.zoo import parts
from tests.zoo.families.stable_diffusion import SIZED, STEPS
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import MOVED, Image, Recipe


def _versatile() -> dict[str, Any]:
    return {"image_unet": parts.unet(), "vae": parts.vae(), "scheduler": parts.ddim()}


def _text() -> dict[str, Any]:
    unet = UNetFlatConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlockFlat", "DownBlockFlat"),
        up_block_types=("UpBlockFlat", "CrossAttnUpBlockFlat"),
    )
    return {"tokenizer": parts.clip_tokenizer(), "text_encoder": parts.clip_text_projected(), "text_unet": unet.eval()}


def _eye() -> dict[str, Any]:
    return {"image_feature_extractor": parts.clip_image_processor(), "image_encoder": parts.clip_vision_projected()}


def _unidiffuser() -> dict[str, Any]:
    units = list(byte_units().values())
    decoder = UniDiffuserTextDecoder(
        prefix_length=77,
        prefix_inner_dim=WIDTH,
        prefix_hidden_dim=WIDTH,
        vocab_size=257,
        n_positions=128,
        n_embd=16,
        n_layer=1,
        n_head=2,
    )
    # safetensors cannot hold one tensor under two names
    head = decoder.transformer.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    unet = UniDiffuserModel(
        text_dim=WIDTH,
        clip_img_dim=WIDTH,
        num_text_tokens=77,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu",
        num_embeds_ada_norm=1000,
        norm_type="layer_norm",
        block_type="unidiffuser",
        use_timestep_embedding=False,
        use_patch_pos_embed=True,
        norm_elementwise_affine=True,
        ff_final_dropout=True,
    )
    return {
        "vae": parts.vae(),
        "text_encoder": parts.clip_text(),
        "image_encoder": parts.clip_vision_projected(),
        "clip_image_processor": parts.clip_image_processor(),
        "clip_tokenizer": parts.clip_tokenizer(),
        "text_decoder": decoder.eval(),
        "text_tokenizer": GPT2Tokenizer(
            vocab={unit: index for index, unit in enumerate([*units, "<|endoftext|>"])}, merges=[]
        ),
        "unet": unet.eval(),
        "scheduler": parts.ddim(),
    }


_IMAGE = {"image": Image(), "width": 64, "height": 64, **STEPS}
_FLAT = {"text_unet": "versatile_diffusion"}

RECIPES = (
    Recipe(
        "VersatileDiffusionTextToImagePipeline", lambda: {**_versatile(), **_text()}, SIZED, broken=MOVED, moved=_FLAT
    ),
    Recipe("VersatileDiffusionImageVariationPipeline", lambda: {**_versatile(), **_eye()}, _IMAGE),
    Recipe(
        "VersatileDiffusionDualGuidedPipeline",
        lambda: {**_versatile(), **_text(), **_eye()},
        {**_IMAGE, "prompt": "a red apple"},
        broken="gives its own transformer an argument that it does not take",
        moved=_FLAT,
    ),
    Recipe(
        "UniDiffuserPipeline",
        _unidiffuser,
        {"prompt": "a red apple", "width": 64, "height": 64, **STEPS},
        broken=MOVED,
        moved={"text_decoder": "unidiffuser", "unet": "unidiffuser"},
    ),
)
