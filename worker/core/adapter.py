"""A job's adapters: as callers name them, as the job has them, as files, and as the report of their effect.

`LoraSpec` stands in `model.py`, since a model may own LoRAs.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from worker.core.image import Raster
from worker.core.lora import LoraKeys, Scaling
from worker.core.model import AdapterSpec, Detection, Kind, LoraSpec, ModelFiles

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]
# The preprocessing of a control's image that needs no model (see `media/preprocessing.py`).
Preprocess = Literal["canny", "lineart", "grayscale", "invert", "threshold", "blur", "tile"]


class _FileSpec(AdapterSpec):
    model: str = Field(min_length=1, max_length=512, description="A reference, like that of a model.")
    weight_name: str | None = Field(default=None, max_length=512, description="Which file of a repository.")


class ControlNetSpec(_FileSpec):
    """A ControlNet or T2I-Adapter, and the image that it follows from `start` to `end` of the steps."""

    field: ClassVar[str] = "controlnets"

    image: str | None = Field(
        default=None,
        repr=False,
        description="The image to follow, sent like image; the request's own image when left out.",
    )
    scale: Scale = Field(default=1.0, description="How strongly the image is followed; 0 is not at all.")
    start: Share = Field(default=0.0, description="Share of the steps after which it begins.")
    end: Share = Field(default=1.0, description="Share of the steps after which it ends.")
    preprocess: Preprocess | None = Field(default=None, description="What to make of the image first.")
    mode: str | None = Field(default=None, max_length=64, description="What the image shows, for a union ControlNet.")

    @property
    def sent_images(self) -> tuple[str, ...]:
        """The image to follow, where the control has its own."""
        return () if self.image is None else (self.image,)


class IPAdapterSpec(_FileSpec):
    """An IP-Adapter, and the image or images that prompt it."""

    field: ClassVar[str] = "ip_adapters"

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"image": {"type": "string"}}, "required": ["image"]},
                {"properties": {"images": {"minItems": 1}}, "required": ["images"]},
            ]
        }
    )

    image: str | None = Field(default=None, repr=False, description="The image to draw after, sent like image.")
    images: tuple[str, ...] = Field(default=(), strict=False, repr=False, max_length=8)
    scale: Scale = 1.0

    @property
    def sent_images(self) -> tuple[str, ...]:
        """The images that prompt it."""
        return self.images if self.image is None else (self.image, *self.images)


class EmbeddingSpec(_FileSpec):
    """A textual inversion, and the word that calls it up in a prompt; its own name when left out."""

    field: ClassVar[str] = "embeddings"

    token: str | None = Field(default=None, max_length=64, pattern=r"^[^\s\x00-\x1f]([^\x00-\x1f]*[^\s\x00-\x1f])?$")


class HypernetworkSpec(_FileSpec):
    """A hypernetwork, and how much of its change is applied."""

    field: ClassVar[str] = "hypernetworks"

    weight: Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)] = 1.0


class VaeSpec(AdapterSpec):
    """The VAE that encodes and decodes in place of the model's own."""

    field: ClassVar[str] = "vae"


Spec = TypeVar("Spec", bound=AdapterSpec)


@dataclass(frozen=True, slots=True)
class Adapter(Generic[Spec]):
    """One adapter of an accepted job: its spec, checked. A kind with more data has a class of its own."""

    spec: Spec


@dataclass(frozen=True, slots=True)
class ControlCall:
    """The parameters of a class's call that its controls fill; None for one that the class lacks."""

    images: str
    scale: str
    start: str | None
    end: str | None
    mode: str | None

    def __iter__(self) -> Iterator[str]:
        return (name for name in (self.images, self.scale, self.start, self.end, self.mode) if name)


@dataclass(frozen=True, slots=True)
class Control(Adapter[ControlNetSpec]):
    """A ControlNet or T2I-Adapter, its image at the size of the output, and the parameters that it fills.

    The image is the one that it follows, after any preprocessing. `mode` is a union ControlNet's own number for the
    kind of image.
    """

    image: Raster
    call: ControlCall
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class ImagePrompt(Adapter[IPAdapterSpec]):
    """An IP-Adapter, and its images as they were sent."""

    images: tuple[Raster, ...]


Accepted = TypeVar("Accepted", bound=Adapter[Any])


@dataclass(frozen=True, slots=True)
class AdapterFiles(Generic[Accepted]):
    """A job's adapter on disk, checked against the model's architecture."""

    adapter: Accepted
    files: ModelFiles
    detection: Detection
    sha256: str | None = None
    bytes_beside: int = 0  # its memory on the device beside the model, where that is much

    @property
    def kind(self) -> Kind:
        """The kind of the file."""
        return self.detection.kind

    @property
    def model(self) -> str:
        """The reference that the caller sent."""
        return str(self.adapter.spec.model)

    @property
    def key(self) -> Hashable:
        """A key that identifies its content."""
        return self.sha256 or self.files.root


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFiles(AdapterFiles[Adapter[LoraSpec]]):
    """A LoRA on disk, and the facts from its header."""

    keys: LoraKeys
    scaling: Scaling
    trigger_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """The effect of an adapter, other than a LoRA, on a job. `tokens` are the words by which a prompt calls it up."""

    kind: Kind
    model: str
    weight: float = 1.0
    sha256: str | None = None
    tokens: tuple[str, ...] = ()
