"""THE TABLES of IP-Adapters: the layouts of their files, the image encoders they were trained on, and where these are.

Widths and names as published by their authors (h94/IP-Adapter, XLabs-AI/flux-ip-adapter, Kwai-Kolors,
InstantX) and as diffusers 0.42.1 reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from worker.catalog.architectures import ARCHITECTURES, Architecture
from worker.catalog.conditions import Condition, all_of, dimension, has_all, has_any, none_of
from worker.core.model import TensorIndex
from worker.core.single_file import unwrapped

# The output of its encoder that a projection reads: the projected vector, or the last layer but one for each patch.
Reads = Literal["projection", "patches"]


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout of IP-Adapter files. The tensor `input_name` has the encoder's width along `axis`.

    `refused` is the reason why files of this layout cannot be applied here.
    """

    title: str
    condition: Condition
    reads: Reads
    input_name: str
    axis: int = -1
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """An image encoder that adapters were trained on. `width` is that of its patches, `projection` of its vector."""

    title: str
    width: int
    projection: int | None
    reference: str
    only_named: bool = False  # for the families alone whose row names it


@dataclass(frozen=True, slots=True)
class Need:
    """The encoder that an adapter's header asks for: the output it reads, and the width of that."""

    reads: Reads
    width: int

    def met_by(self, config: Mapping[str, object]) -> bool:
        """True if the config.json describes an encoder of that width. A whole CLIP counts too."""
        inner = config.get("vision_config")
        vision = inner if isinstance(inner, Mapping) else config
        name = "projection_dim" if self.reads == "projection" else "hidden_size"
        return vision.get(name, config.get(name)) == self.width


_INSIGHTFACE = "a FaceID adapter, which takes the vectors of the face recogniser InsightFace and no image"
_ATTENTION = "ip_adapter.1.to_k_ip.weight"
_XLABS = "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "FaceID Plus", has_all("image_proj.perceiver_resampler.proj_in.weight"), "patches",
        "image_proj.perceiver_resampler.proj_in.weight", refused=_INSIGHTFACE,
    ),
    Layout("XLabs", has_all("ip_adapter_proj_model.proj.weight", _XLABS), "projection",
           "ip_adapter_proj_model.proj.weight"),
    Layout(
        "plain", all_of(has_all("image_proj.proj.weight"), has_any(_ATTENTION, "ip_adapter.0.to_k_ip.weight")),
        "projection", "image_proj.proj.weight",
    ),
    Layout(
        "full face", has_all("image_proj.proj.3.weight", "image_proj.proj.0.weight", _ATTENTION), "patches",
        "image_proj.proj.0.weight", 0,  # it is square, and diffusers reads its rows
    ),
    Layout(
        "FaceID", all_of(has_all("image_proj.norm.weight"), dimension("image_proj.proj.0.weight", 1, 512)),
        "projection",
        "image_proj.proj.0.weight", refused=_INSIGHTFACE,
    ),
    Layout(
        "Stable Diffusion 3", has_all("image_proj.latents", "image_proj.time_embedding.linear_1.weight"), "patches",
        "image_proj.proj_in.weight",
    ),
    Layout(
        "plus", all_of(has_all("image_proj.latents", "image_proj.proj_in.weight", _ATTENTION),
                       none_of(has_any("image_proj.time_embedding.linear_1.weight"))),
        "patches", "image_proj.proj_in.weight",
    ),
    Layout(
        "InstantX", has_all("image_proj.norm.weight", "image_proj.proj.2.weight"), "patches",
        "image_proj.proj.0.weight",
        refused="of InstantX's layout for FLUX.1, which diffusers does not read",
    ),
)  # fmt: skip

_VIT_L_336 = "Kwai-Kolors/Kolors-IP-Adapter-Plus#image_encoder"
ENCODERS: tuple[ImageEncoder, ...] = (
    ImageEncoder("CLIP ViT-L/14 at 336 pixels", 1024, 768, _VIT_L_336, only_named=True),
    ImageEncoder("CLIP ViT-H/14", 1280, 1024, "h94/IP-Adapter#models/image_encoder"),
    ImageEncoder("CLIP ViT-bigG/14", 1664, 1280, "h94/IP-Adapter#sdxl_models/image_encoder"),
    ImageEncoder("CLIP ViT-L/14", 1024, 768, "openai/clip-vit-large-patch14"),
    ImageEncoder("SigLIP so400m at 384 pixels", 1152, None, "google/siglip-so400m-patch14-384"),
)

_ROWS: Mapping[str, Architecture] = {row.id: row for row in ARCHITECTURES}
# The files that a repository's name alone can mean, after those that its family names.
_USUAL_ANYWHERE = ("ip_adapter.safetensors", "ip-adapter.safetensors")
_FOLDER = "image_encoder"


def layout_of(index: TensorIndex) -> Layout | None:
    """Return the layout of an IP-Adapter's file; None for one that no row knows."""
    index = replace(index, tensors=unwrapped(index.tensors))
    return next((row for row in LAYOUTS if row.condition(index)), None)


def need_of(index: TensorIndex, layout: Layout) -> Need | None:
    """Return the encoder that a file of `layout` needs; None where its projection is missing."""
    tensor = unwrapped(index.tensors).get(layout.input_name)
    if tensor is None or not tensor[1]:
        return None
    return Need(layout.reads, tensor[1][layout.axis])


def usual_encoder(need: Need, architecture: str | None) -> ImageEncoder | None:
    """Return the encoder of that width that a family's adapters were trained on; None where no row has it."""
    family = _ROWS.get(architecture or "")
    for row in ENCODERS:
        width = row.projection if need.reads == "projection" else row.width
        if width == need.width and (
            not row.only_named or (family is not None and family.image_encoder == row.reference)
        ):
            return row
    return None


def usual_files(architecture: str | None) -> tuple[str, ...]:
    """Return the files that a repository's name alone can mean, the first choice first."""
    family = _ROWS.get(architecture or "")
    return (family.ip_adapter_files if family else ()) + _USUAL_ANYWHERE


def encoder_folders(filename: str) -> tuple[str, ...]:
    """Return the folders of a file's repository that can hold the encoder: beside it, then as in h94/IP-Adapter."""
    beside = PurePosixPath(filename).parent / _FOLDER
    return tuple(dict.fromkeys((beside.as_posix(), _FOLDER, f"models/{_FOLDER}", f"sdxl_models/{_FOLDER}")))
