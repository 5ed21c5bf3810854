"""THE TABLE of control: the class that generates with a ControlNet or T2I-Adapter, in place of the one without.

A model keeps its task; only its class changes. The class's call signature tells its names for images, scales and steps,
so that a row of control holds names of classes and nothing else. The odd ones among those classes have rows of their
own, as all odd classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worker.core.model import Detection
from worker.core.pipeline import PipelineRow, Slot

# Of several controls: each its own file, all of one file (which is then a union), or none.
Several = Literal["any", "same", "one"]


@dataclass(frozen=True, slots=True)
class Controlled:
    """A row: `pipeline` generates as `plain` does, with controls that `component` reads.

    `inpaints` true or false: the controls must, or must not, have been trained to see the image and its mask too.
    """

    plain: str
    component: str
    pipeline: str
    several: Several = "any"
    inpaints: bool | None = None

    def takes(self, control: Detection) -> bool:
        """True if this row's class reads a control of this kind."""
        fits = self.inpaints is None or self.inpaints is (control.variant == "inpainting")
        return fits and control.component_class == self.component


def _unet(plain: str, control: str, component: str = "ControlNetModel") -> tuple[Controlled, ...]:
    return tuple(
        Controlled(f"{plain}{task}Pipeline", component, f"{control}{task}Pipeline")
        for task in ("", "Img2Img", "Inpaint")
    )


CONTROLLED: tuple[Controlled, ...] = (
    *_unet("StableDiffusion", "StableDiffusionControlNet"),
    *_unet("StableDiffusionXL", "StableDiffusionXLControlNet"),
    *_unet("StableDiffusionXL", "StableDiffusionXLControlNetUnion", "ControlNetUnionModel"),
    Controlled(
        "StableDiffusionPipeline", "ControlNetXSAdapter", "StableDiffusionControlNetXSPipeline", several="one"
    ),
    Controlled(
        "StableDiffusionXLPipeline", "ControlNetXSAdapter", "StableDiffusionXLControlNetXSPipeline", several="one"
    ),
    Controlled("StableDiffusionPipeline", "T2IAdapter", "StableDiffusionAdapterPipeline"),
    Controlled("StableDiffusionXLPipeline", "T2IAdapter", "StableDiffusionXLAdapterPipeline"),
    Controlled("FluxPipeline", "FluxControlNetModel", "FluxControlNetPipeline"),
    Controlled("FluxImg2ImgPipeline", "FluxControlNetModel", "FluxControlNetImg2ImgPipeline"),
    Controlled("FluxInpaintPipeline", "FluxControlNetModel", "FluxControlNetInpaintPipeline"),
    Controlled(
        "StableDiffusion3Pipeline", "SD3ControlNetModel", "StableDiffusion3ControlNetPipeline", inpaints=False
    ),
    Controlled(
        "StableDiffusion3InpaintPipeline", "SD3ControlNetModel", "StableDiffusion3ControlNetInpaintingPipeline",
        several="one", inpaints=True,
    ),
    # Its class of several ControlNets refuses to hold more than one, which then sees several images.
    Controlled(
        "QwenImagePipeline", "QwenImageControlNetModel", "QwenImageControlNetPipeline", several="same", inpaints=False
    ),
    Controlled(
        "QwenImageInpaintPipeline", "QwenImageControlNetModel", "QwenImageControlNetInpaintPipeline", several="one",
        inpaints=True,
    ),
    Controlled("ZImagePipeline", "ZImageControlNetModel", "ZImageControlNetPipeline", several="one"),
    Controlled(
        "ZImageInpaintPipeline", "ZImageControlNetModel", "ZImageControlNetInpaintPipeline", several="one",
        inpaints=True,
    ),
    Controlled("HunyuanDiTPipeline", "HunyuanDiT2DControlNetModel", "HunyuanDiTControlNetPipeline"),
    Controlled("SanaPipeline", "SanaControlNetModel", "SanaControlNetPipeline", several="one"),
)  # fmt: skip

_SDXL_UNION = ("pose", "depth", "softedge", "canny", "normal", "segment")
# The meanings of a union's numbers, as its authors list them:
# xinsir's for SDXL, InstantX's and Shakker Labs' for FLUX.1.
MODES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("ControlNetUnionModel", "union"): _SDXL_UNION,
    ("ControlNetUnionModel", "union-promax"): (*_SDXL_UNION, "tile", "repaint"),
    ("FluxControlNetModel", "union"): ("canny", "tile", "depth", "blur", "pose", "grayscale", "low-quality"),
}

_IMAGE, _CONTROL = ("image", "images"), ("control_image", "control_images")
_CONTROL_AS_IMAGE = Slot("image", (*_CONTROL, *_IMAGE), "controls", required=True)
_IMAGE_AS_CONTROL = Slot("control_image", (*_IMAGE, *_CONTROL), required=True)
_GUESS = frozenset({"guess_mode"})  # its batch is doubled for guidance where it should not be
_CROP = frozenset({"padding_mask_crop"})  # refuses the only output type that it asks for, or its own list of images

# Measured with diffusers 0.42.1, by tests/zoo.
CONTROLS: tuple[PipelineRow, ...] = (
    PipelineRow(
        "BlipDiffusionControlNetPipeline",
        broken="its Q-Former calls invert_attention_mask, which transformers 5 removed",
    ),
    PipelineRow("HunyuanDiTControlNetPipeline", alone=True),
    PipelineRow("QwenImageControlNetInpaintPipeline", slots=(_IMAGE_AS_CONTROL,), alone=True),
    PipelineRow(
        "StableDiffusion3ControlNetInpaintingPipeline", slots=(_IMAGE_AS_CONTROL,), image_prompts="one", alone=True
    ),
    PipelineRow("StableDiffusion3ControlNetPipeline", image_prompts="one", alone=True),
    PipelineRow("StableDiffusionAdapterPipeline", slots=(_CONTROL_AS_IMAGE,), image_per_prompt=True),
    PipelineRow("StableDiffusionControlNetPAGPipeline", slots=(_CONTROL_AS_IMAGE,), untaken=_GUESS),
    PipelineRow("StableDiffusionControlNetPipeline", slots=(_CONTROL_AS_IMAGE,)),
    PipelineRow("StableDiffusionControlNetXSPipeline", slots=(_CONTROL_AS_IMAGE,)),
    # The adapters for SDXL unshuffle sixteen pixels a side.
    PipelineRow(
        "StableDiffusionXLAdapterPipeline", slots=(_CONTROL_AS_IMAGE,), image_per_prompt=True, size_multiple=16
    ),
    PipelineRow("StableDiffusionXLControlNetPAGPipeline", slots=(_CONTROL_AS_IMAGE,)),
    PipelineRow("StableDiffusionXLControlNetPipeline", slots=(_CONTROL_AS_IMAGE,)),
    PipelineRow("StableDiffusionXLControlNetUnionImg2ImgPipeline", untaken=_GUESS),
    PipelineRow("StableDiffusionXLControlNetUnionInpaintPipeline", untaken=_GUESS | _CROP, alone=True),
    PipelineRow("StableDiffusionXLControlNetUnionPipeline", untaken=_GUESS, alone=True),
    PipelineRow("StableDiffusionXLControlNetXSPipeline", slots=(_CONTROL_AS_IMAGE,)),
)
