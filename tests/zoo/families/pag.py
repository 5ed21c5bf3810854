"""Pipelines with perturbed-attention guidance: the models of others, called in another way."""

from tests.zoo.families.controlnet import CONTROL, with_controlnet, with_xl_controlnet
from tests.zoo.families.dit import UNBINNED, hunyuan_dit, pixart
from tests.zoo.families.stable_diffusion import INPAINT, REDRAW, SIZED, bare, sd1
from tests.zoo.families.stable_diffusion_3 import sd3
from tests.zoo.families.stable_diffusion_xl import kolors, sdxl
from tests.zoo.families.videos import FILM, animated
from tests.zoo.recipe import Image, Recipe

_CONTROLLED = {"call": {**SIZED, "image": Image(seed=1)}}


RECIPES = (
    Recipe("StableDiffusionPAGPipeline", sd1, SIZED),
    Recipe("StableDiffusionPAGImg2ImgPipeline", sd1, REDRAW),
    Recipe("StableDiffusionPAGInpaintPipeline", sd1, {**INPAINT, "num_inference_steps": 4}),
    Recipe("StableDiffusionXLPAGPipeline", sdxl, SIZED),
    Recipe("StableDiffusionXLPAGImg2ImgPipeline", sdxl, REDRAW),
    Recipe("StableDiffusionXLPAGInpaintPipeline", sdxl, {**INPAINT, "num_inference_steps": 4}),
    Recipe("StableDiffusionControlNetPAGPipeline", lambda: with_controlnet(sd1()), {**SIZED, **CONTROL}, **_CONTROLLED),
    Recipe("StableDiffusionControlNetPAGInpaintPipeline", lambda: with_controlnet(sd1()), {**INPAINT, **CONTROL}),
    Recipe(
        "StableDiffusionXLControlNetPAGPipeline",
        lambda: with_xl_controlnet(sdxl()),
        {**SIZED, **CONTROL},
        **_CONTROLLED,
    ),
    Recipe("StableDiffusionXLControlNetPAGImg2ImgPipeline", lambda: with_xl_controlnet(sdxl()), {**REDRAW, **CONTROL}),
    Recipe("StableDiffusion3PAGPipeline", sd3, SIZED),
    Recipe("StableDiffusion3PAGImg2ImgPipeline", sd3, {**REDRAW, "width": 64, "height": 64}),
    Recipe("HunyuanDiTPAGPipeline", hunyuan_dit, UNBINNED),
    Recipe("PixArtSigmaPAGPipeline", pixart, UNBINNED),
    Recipe("KolorsPAGPipeline", kolors, {**SIZED, "max_sequence_length": 32}, needs=("sentencepiece",)),
    Recipe("AnimateDiffPAGPipeline", lambda: animated(bare()), FILM),
)
