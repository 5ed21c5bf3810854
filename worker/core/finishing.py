"""The work on an image after its model: a refiner's last steps, an upscaler, and a verdict on its safety.

A refiner and an upscaler are models of their own, with sources and files like the first model.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import (
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from worker.core.call import Call, KnownModel
from worker.core.model import ModelFiles, ReferenceSpec


class SecondModelSpec(ReferenceSpec):
    """A model that works after the first."""

    model: str = Field(min_length=1, max_length=512, description="A model id of models.yaml, or a reference.")


OWN = "own"  # names the refiner that models.yaml gives a model


class RefinerSpec(SecondModelSpec):
    """The model that draws the last steps, from `start` of them on, out of the first one's latents.

    `own` is the one that models.yaml gives the first model.
    """

    model: str = Field(
        default=OWN, min_length=1, max_length=512, description="A model id of models.yaml, a reference, or own."
    )
    start: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = 0.8
    steps: int | None = Field(
        default=None, ge=1, le=1_000, description="Steps of its whole schedule; num_inference_steps when left out."
    )
    optional: bool = Field(default=False, description="Whether a model without one of its own draws alone.")


class UpscaleSpec(SecondModelSpec):
    """The upscaler file that enlarges what was drawn; by default as much as it was made for.

    `false` in its place asks for none, also of a model that has one of its own.
    """

    scale: Annotated[float, Field(ge=0.25, le=8.0, allow_inf_nan=False)] | None = None
    tile: int = Field(default=256, ge=64, le=2_048, description="Pixels a side that it sees at once.")

    @model_validator(mode="wrap")
    @classmethod
    def _or_none(cls, value: object, handler: "ModelWrapValidatorHandler[UpscaleSpec]") -> "UpscaleSpec":
        if value is False or value == "false":
            return cls.model_construct(model="")
        return handler(value)

    @model_serializer(mode="wrap")
    def _as_sent(self, handler: SerializerFunctionWrapHandler) -> JsonValue:
        fields: JsonValue = handler(self) if self.is_wanted else False
        return fields

    @property
    def is_wanted(self) -> bool:
        """False where a request asks for no upscaler."""
        return bool(self.model)


@dataclass(frozen=True, slots=True)
class Refiner:
    """An accepted job's refiner, and its call."""

    spec: RefinerSpec
    call: Call


@dataclass(frozen=True, slots=True)
class Upscaler:
    """An accepted job's upscaler."""

    spec: UpscaleSpec
    model: KnownModel


@dataclass(frozen=True, slots=True)
class Finishing:
    """The models that work after a job's own, where it asks for them."""

    refiner: Refiner | None = None
    upscaler: Upscaler | None = None


@dataclass(frozen=True, slots=True)
class FinishingFiles:
    """The files of a batch's further models; None for those that neither the job nor the operator asks for."""

    refiner: ModelFiles | None = None
    upscaler: ModelFiles | None = None
    safety_checker: ModelFiles | None = None

    @property
    def bytes_downloaded(self) -> int:
        """Bytes that were fetched for these files."""
        models = (self.refiner, self.upscaler, self.safety_checker)
        return sum(files.bytes_downloaded for files in models if files is not None)


@dataclass(frozen=True, slots=True)
class SafetyVerdict:
    """The verdict of the operator's safety checker on one image. `score` (0..1) is its certainty that it is unsafe."""

    flagged: bool
    label: str
    score: float
