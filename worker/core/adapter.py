"""What a job puts beside its model, as callers name it and as files: ControlNets, image prompts, words, hypernetworks.

LoRAs stand in `model.py`, since a model may own some, and in `lora.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from worker.core.image import Raster
from worker.core.model import Detection, Kind, ModelFiles, Parsed

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)]
# What can be made of a control's picture without any model (`media/preprocessing.py` does it).
Preprocess = Literal["canny", "lineart", "grayscale", "invert", "threshold", "blur", "tile"]


class AdapterSpec(Parsed):
    """A file beside the model. A reference alone stands for an object that names nothing else."""

    model: str = Field(min_length=1, max_length=512, description="A reference, like that of a model.")
    weight_name: str | None = Field(default=None, max_length=512, description="Which file of a repository.")

    @model_validator(mode="before")
    @classmethod
    def _bare_reference(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value


class ControlNetSpec(AdapterSpec):
    """A ControlNet or T2I-Adapter, and the picture that it follows from `start` to `end` of the steps."""

    image: str | None = Field(
        default=None, description="The picture to follow, sent like image; the request's own image when left out."
    )
    scale: Scale = Field(default=1.0, description="How strongly the picture is followed; 0 is not at all.")
    start: Share = Field(default=0.0, description="Share of the steps after which it begins.")
    end: Share = Field(default=1.0, description="Share of the steps after which it ends.")
    preprocess: Preprocess | None = Field(default=None, description="What to make of the picture first.")
    mode: str | None = Field(default=None, max_length=64, description="What the picture shows, for a union ControlNet.")


class IPAdapterSpec(AdapterSpec):
    """An IP-Adapter, and the picture or pictures that prompt it."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"image": {"type": "string"}}, "required": ["image"]},
                {"properties": {"images": {"minItems": 1}}, "required": ["images"]},
            ]
        }
    )

    image: str | None = Field(default=None, description="The picture to draw after, sent like image.")
    images: tuple[str, ...] = Field(default=(), strict=False, max_length=8)
    scale: Scale = 1.0


class EmbeddingSpec(AdapterSpec):
    """A textual inversion, and the word that calls it up in a prompt; its own name when left out."""

    token: str | None = Field(default=None, max_length=64, pattern=r"^[^\s\x00-\x1f]([^\x00-\x1f]*[^\s\x00-\x1f])?$")


class HypernetworkSpec(AdapterSpec):
    """A hypernetwork, and how much of its change is applied."""

    weight: Annotated[float, Field(ge=-10.0, le=10.0, allow_inf_nan=False)] = 1.0


ADAPTER_SPECS: Mapping[str, type[AdapterSpec]] = {
    "controlnets": ControlNetSpec,
    "ip_adapters": IPAdapterSpec,
    "embeddings": EmbeddingSpec,
    "hypernetworks": HypernetworkSpec,
}


@dataclass(frozen=True, slots=True)
class Control:
    """One ControlNet or T2I-Adapter of an accepted job, and the picture as it sees it, at the size that is drawn.

    `mode` is a union ControlNet's own number for what the picture shows.
    """

    spec: ControlNetSpec
    picture: Raster
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class ControlCall:
    """The parameters of a class's call that its controls fill; None where it has none of the kind."""

    pictures: str
    scale: str
    start: str | None
    end: str | None
    mode: str | None

    def __iter__(self) -> Iterator[str]:
        return (name for name in (self.pictures, self.scale, self.start, self.end, self.mode) if name)


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """One IP-Adapter of an accepted job, and its pictures as they came."""

    spec: IPAdapterSpec
    pictures: tuple[Raster, ...]


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on disk, checked against the model's architecture."""

    kind: Kind
    spec: AdapterSpec
    files: ModelFiles
    detection: Detection
    sha256: str | None = None
    unfolded_bytes: int | None = None  # of a control LoRA: what it takes once it is the ControlNet that it stands for

    @property
    def bytes_beside(self) -> int:
        """What it takes on the device beside the model, as far as its stored bytes tell."""
        return self.unfolded_bytes or self.files.total_bytes


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """What an adapter other than a LoRA did for a job. `tokens` are the words that a prompt may call it up with."""

    kind: Kind
    model: str
    weight: float = 1.0
    sha256: str | None = None
    tokens: tuple[str, ...] = ()
