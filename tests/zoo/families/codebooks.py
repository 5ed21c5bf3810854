"""Models that choose entries of a codebook instead of denoising: aMUSEd and VQ-Diffusion."""

from typing import Any

from diffusers import AmusedScheduler, Transformer2DModel, UVit2DModel, VQDiffusionScheduler, VQModel
from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import LearnedClassifierFreeSamplingEmbeddings

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import INPAINT, REDRAW, SIZED
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import MOVED, Recipe

_ENTRIES = 32


def _vqvae(**changes: object) -> VQModel:
    return VQModel(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=8,
        vq_embed_dim=8,
        num_vq_embeddings=_ENTRIES,
        norm_num_groups=4,
        **changes,
    ).eval()


def _amused() -> dict[str, Any]:
    transformer = UVit2DModel(
        hidden_size=32,
        cond_embed_dim=WIDTH,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        encoder_hidden_size=WIDTH,
        vocab_size=_ENTRIES + 1,
        codebook_size=_ENTRIES,
        in_channels=32,
        block_out_channels=32,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        sample_size=8,
    )
    return {
        "vqvae": _vqvae(lookup_from_codebook=True),
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder": parts.clip_text_projected(),
        "transformer": transformer.eval(),
        "scheduler": AmusedScheduler(mask_token_id=_ENTRIES),
    }


def _vq_diffusion() -> dict[str, Any]:
    transformer = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_vector_embeds=_ENTRIES + 1,
        sample_size=8,
        cross_attention_dim=WIDTH,
        num_embeds_ada_norm=100,
        norm_type="ada_norm",
        norm_num_groups=8,
        activation_fn="geglu-approximate",
    )
    return {
        "vqvae": _vqvae(),
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder": parts.clip_text(),
        "transformer": transformer.eval(),
        "scheduler": VQDiffusionScheduler(num_vec_classes=_ENTRIES + 1),
        "learned_classifier_free_sampling_embeddings": LearnedClassifierFreeSamplingEmbeddings(learnable=False),
    }


RECIPES = (
    Recipe("AmusedPipeline", _amused, SIZED),
    Recipe("AmusedImg2ImgPipeline", _amused, REDRAW),
    Recipe("AmusedInpaintPipeline", _amused, {**INPAINT, "num_inference_steps": 4, "strength": 0.8}),
    Recipe(
        "VQDiffusionPipeline",
        _vq_diffusion,
        {"prompt": "a red apple", "num_inference_steps": 2},
        broken=MOVED,
        moved={"learned_classifier_free_sampling_embeddings": "vq_diffusion"},
    ),
)
