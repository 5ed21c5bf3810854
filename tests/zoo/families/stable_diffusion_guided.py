"""Stable Diffusion 1 and XL guided in other ways: by boxes, tokens, examples, inversion, self-attention, safety."""

from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMParallelScheduler, DPMSolverMultistepScheduler
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from transformers import CLIPProcessor

from tests.zoo import parts
from tests.zoo.families.stable_diffusion import INPAINT, REDRAW, SIZED, STEPS, sd1
from tests.zoo.families.stable_diffusion_xl import sdxl
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import MOVED, Image, Mask, Recipe, Values

_EDIT = {"image": Image(), "editing_prompt": ["a green pear"]}
# LEdits++ reads the attention at a quarter of the latents' sides
_THREE_LEVELS = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_BOXES = {"gligen_phrases": ["a red apple"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}


def _alt() -> dict[str, Any]:
    config = RobertaSeriesConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        project_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=80,
    )
    text = {"text_encoder": RobertaSeriesModelWithTransformation(config).eval()}
    return {**sd1(), **text, "tokenizer": parts.xlm_roberta_tokenizer()}


def _gligen_image() -> dict[str, Any]:
    return {
        **sd1(attention_type="gated-text-image"),
        "processor": CLIPProcessor(parts.clip_image_processor(), parts.clip_tokenizer()),
        "image_encoder": parts.clip_vision_projected(),
        "image_project": CLIPImageProjection(hidden_size=WIDTH),
    }


def _rgb_and_depth() -> dict[str, Any]:
    return {**sd1(), "vae": parts.vae(in_channels=6, out_channels=6), "image_encoder": None}


def _paint_by_example() -> dict[str, Any]:
    found = sd1(in_channels=9)
    del found["text_encoder"], found["tokenizer"]
    encoder = PaintByExampleImageEncoder(parts.clip_vision_config(num_hidden_layers=5), proj_size=WIDTH)
    return {**found, "image_encoder": encoder.eval(), "feature_extractor": parts.clip_image_processor()}


def _ledits(*, xl: bool = False) -> dict[str, Any]:
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    return {**(sdxl() if xl else sd1(**_THREE_LEVELS)), "scheduler": scheduler}


def _invert(pipeline: Any) -> None:
    pipeline.invert(Image().draw(), num_inversion_steps=4, generator=torch.Generator().manual_seed(0))


def _mask_and_invert(pipeline: Any) -> Values:
    image, words = Image().draw(), {"source_prompt": "an apple", "target_prompt": "a pear"}
    few = {"num_inference_steps": 4, "num_maps_per_mask": 1, "mask_thresholding_ratio": 1.0}
    mask = pipeline.generate_mask(image=image, **words, **few)
    latents = pipeline.invert(prompt="an apple", image=image, num_inference_steps=4).latents
    return {"mask_image": mask, "image_latents": latents}


RECIPES = (
    Recipe("AltDiffusionPipeline", _alt, SIZED, broken=MOVED, moved={"text_encoder": "alt_diffusion"}),
    Recipe("AltDiffusionImg2ImgPipeline", _alt, REDRAW, broken=MOVED, moved={"text_encoder": "alt_diffusion"}),
    Recipe(
        "CycleDiffusionPipeline",
        sd1,
        {"prompt": "a pear", "source_prompt": "an apple", "image": Image(), "num_inference_steps": 4},
    ),
    Recipe(
        "StableDiffusionInpaintPipelineLegacy",
        lambda: {**sd1(), **parts.safety_checker()},
        {**INPAINT, "num_inference_steps": 4},
    ),
    Recipe("StableDiffusionModelEditingPipeline", sd1, SIZED),
    Recipe(
        "StableDiffusionParadigmsPipeline",
        lambda: {**sd1(), "scheduler": DDIMParallelScheduler(**parts.SD_BETAS)},
        {**SIZED, "num_inference_steps": 3, "parallel": 2},
    ),
    Recipe("SemanticStableDiffusionPipeline", sd1, {**SIZED, "editing_prompt": ["green"]}),
    Recipe(
        "StableDiffusionAttendAndExcitePipeline",
        sd1,
        {**SIZED, "token_indices": [2], "attn_res": [8, 8], "max_iter_to_alter": 1},
    ),
    Recipe(
        "StableDiffusionDiffEditPipeline",
        lambda: {**sd1(), "inverse_scheduler": DDIMInverseScheduler(**parts.SD_BETAS)},
        # At the usual ratio a model that knows neither finds no place where the two differ.
        {
            "prompt": "a pear",
            "source_prompt": "an apple",
            "image": Image(),
            "num_inference_steps": 4,
            "mask_thresholding_ratio": 1.0,
        },
        call={"prompt": "a pear", "num_inference_steps": 4},
        before=_mask_and_invert,
    ),
    Recipe("StableDiffusionGLIGENPipeline", lambda: sd1(attention_type="gated"), {**SIZED, **_BOXES}),
    Recipe("StableDiffusionGLIGENTextImagePipeline", _gligen_image, {**SIZED, **_BOXES, "gligen_images": [Image()]}),
    Recipe("StableDiffusionLDM3DPipeline", _rgb_and_depth, SIZED, call={**SIZED, "output_type": "np"}),
    Recipe("StableDiffusionPanoramaPipeline", sd1, {**SIZED, "width": 128}),
    Recipe("StableDiffusionPipelineSafe", sd1, SIZED),
    Recipe("StableDiffusionSAGPipeline", sd1, SIZED),
    Recipe(
        "PaintByExamplePipeline",
        _paint_by_example,
        {"example_image": Image(seed=1), "image": Image(), "mask_image": Mask(), **STEPS},
        broken=MOVED,
        moved={"image_encoder": "paint_by_example"},
    ),
    Recipe(
        "LEditsPPPipelineStableDiffusion", _ledits, _EDIT, call={"editing_prompt": ["a green pear"]}, before=_invert
    ),
    Recipe(
        "LEditsPPPipelineStableDiffusionXL",
        lambda: _ledits(xl=True),
        _EDIT,
        call={"editing_prompt": ["a green pear"]},
        before=_invert,
        # Of the sizes of attention that it makes masks of a tiny model has none.
        values={"use_cross_attn_mask": None, "use_intersect_mask": None},
    ),
)
