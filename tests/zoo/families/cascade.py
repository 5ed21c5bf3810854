"""Würstchen and Stable Cascade: a prior draws a very small image, a decoder makes it large."""

from typing import Any

from diffusers import DDPMWuerstchenScheduler, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior

from tests.zoo import parts
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import MOVED, Recipe

_REQUEST = {
    "prompt": "a red apple",
    "negative_prompt": "blue",
    "width": 128,
    "height": 128,
    "num_inference_steps": 2,
    "prior_num_inference_steps": 2,
}
_SMALL = {
    "block_out_channels": (32, 32),
    "num_attention_heads": (2, 2),
    "down_num_layers_per_block": (1, 1),
    "up_num_layers_per_block": (1, 1),
    "clip_text_pooled_in_channels": WIDTH,
    "conditioning_dim": 32,
    "dropout": (0.0, 0.0),
}


def _vqgan() -> PaellaVQModel:
    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=16, embed_dim=16).eval()


def _wuerstchen() -> dict[str, Any]:
    decoder = WuerstchenDiffNeXt(
        c_cond=32,
        c_hidden=[32, 32],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=16,
        clip_embd=WIDTH,
        dropout=[0.0, 0.0],
    )
    return {
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder": parts.clip_text(),
        "decoder": decoder.eval(),
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": _vqgan(),
        "prior_tokenizer": parts.clip_tokenizer(),
        "prior_text_encoder": parts.clip_text(),
        "prior_prior": WuerstchenPrior(c_in=16, c=32, c_cond=WIDTH, c_r=8, depth=1, nhead=2, dropout=0.0).eval(),
        "prior_scheduler": DDPMWuerstchenScheduler(),
    }


def _stable_cascade() -> dict[str, Any]:
    prior = StableCascadeUNet(
        **_SMALL,
        clip_text_in_channels=WIDTH,
        clip_image_in_channels=WIDTH,
        switch_level=(False,),
    )
    decoder = StableCascadeUNet(
        **_SMALL,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        effnet_in_channels=16,
    )
    return {
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder": parts.clip_text_projected(),
        "decoder": decoder.eval(),
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": _vqgan(),
        "prior_tokenizer": parts.clip_tokenizer(),
        "prior_text_encoder": parts.clip_text_projected(),
        "prior_image_encoder": parts.clip_vision_projected(),
        "prior_feature_extractor": parts.clip_image_processor(),
        "prior_prior": prior.eval(),
        "prior_scheduler": DDPMWuerstchenScheduler(),
    }


RECIPES = (
    Recipe(
        "WuerstchenCombinedPipeline",
        _wuerstchen,
        _REQUEST,
        broken=MOVED,
        moved={"decoder": "wuerstchen", "vqgan": "wuerstchen", "prior_prior": "wuerstchen"},
    ),
    Recipe("StableCascadeCombinedPipeline", _stable_cascade, _REQUEST, broken=MOVED, moved={"vqgan": "wuerstchen"}),
)
