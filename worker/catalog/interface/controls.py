"""THE TABLE of control: which class draws with a ControlNet or T2I-Adapter, in place of the one that draws without.

A model keeps its task; only its class changes. What that class calls the pictures, scales and steps is read from its
call signature, so that a row holds names of classes and nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.tasks import pipeline_for
from worker.core.adapter import ControlCall
from worker.core.model import Detection, ModelSpec, Task

MAX_CONTROLS = 4  # the request holds no more
# Of several controls: each its own file, all of one file (which is then a union), or none.
Several = Literal["any", "same", "one"]


@dataclass(frozen=True, slots=True)
class Controlled:
    """A row: `pipeline` draws what `plain` does, with controls that `component` reads.

    `inpaints` says that they must, or must not, have been trained to see the picture and its mask too.
    """

    plain: str
    component: str
    pipeline: str
    several: Several = "any"
    inpaints: bool | None = None

    def takes(self, control: Detection) -> bool:
        """Whether a control of this kind is read by this row's class."""
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
    # Its class of several ControlNets refuses to hold more than one, which then sees several pictures.
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
# What a union's numbers mean, as its authors list them: xinsir's for SDXL, InstantX's and Shakker Labs' for FLUX.1.
_MODES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("ControlNetUnionModel", "union"): _SDXL_UNION,
    ("ControlNetUnionModel", "union-promax"): (*_SDXL_UNION, "tile", "repaint"),
    ("FluxControlNetModel", "union"): ("canny", "tile", "depth", "blur", "pose", "grayscale", "low-quality"),
}


def control_call(pipeline: str) -> ControlCall:
    """How `pipeline`, one of the table's, takes its controls."""
    signature = call_parameters(pipeline) or {}

    def first(*names: str) -> str | None:
        return next((name for name in names if name in signature), None)

    return ControlCall(
        pictures=first("control_image", "image") or "control_image",
        scale=first("controlnet_conditioning_scale", "adapter_conditioning_scale") or "controlnet_conditioning_scale",
        start=first("control_guidance_start"),
        # A T2I-Adapter for SDXL says with one factor after which share of the steps it ends.
        end=first("control_guidance_end", "adapter_conditioning_factor"),
        mode=first("control_mode"),
    )


def controlled_rows(spec: ModelSpec, detection: Detection | None, task: Task) -> tuple[Controlled, ...]:
    """The rows of the class that serves `task` on this model; none where it cannot be controlled."""
    plain = pipeline_for(spec, detection, task)
    return tuple(row for row in CONTROLLED if row.plain == plain)


def takes_controls(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    """Whether a request for `task` may hold `controlnets`."""
    return bool(controlled_rows(spec, detection, task))


def modes_of(control: Detection) -> tuple[str, ...]:
    """What the pictures of a union ControlNet may show, in the order of its own numbers; empty where it is no union."""
    return _MODES.get((control.component_class or "", control.variant or ""), ())


def most_controls(rows: Iterable[Controlled]) -> int:
    """How many controls one request can hold at most, with any of `rows`."""
    return max(1 if row.several == "one" else MAX_CONTROLS for row in rows)


def known_modes(rows: Iterable[Controlled]) -> tuple[str, ...]:
    """Every mode that a union ControlNet of `rows` can have."""
    components = {row.component for row in rows}
    return tuple(dict.fromkeys(mode for (name, _), modes in _MODES.items() if name in components for mode in modes))
