"""A recipe: how an image is made in several steps, each of which is a request for one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from worker.catalog.classes.annotations import Schema
from worker.catalog.operator_file import FileError, KeyPath
from worker.catalog.recipes.detail import LOCAL, REGIONS_SCHEMA
from worker.catalog.recipes.references import InputReference, StepReference, parts_of
from worker.core.model import Parsed, Task
from worker.core.request import MAX_PROMPT_CHARS, MAX_SEED

InputType = Literal["text", "integer", "number", "boolean", "image", "video", "regions"]
MEDIA: tuple[InputType, ...] = ("image", "video")
_JSON_TYPES: Mapping[InputType, str] = {"text": "string", "image": "string", "video": "string"}
_MEANT: Mapping[InputType, str] = {
    "image": "Base64, a data: URI or an https URL of a PNG, JPEG or WebP.",
    "video": "Base64, a data: URI or an https URL of an MP4, GIF or WebP.",
    "regions": "Parts of the image: left, top, right and bottom of each, as shares of its sides from 0 to 1.",
}
# Between the seeds of two steps: more than the images that one step can make, which count up from its own.
SEED_STRIDE = 1_000


class RecipeError(FileError):
    """A recipe that cannot be used. The message starts with `FOLDER/FILE:LINE: `."""


class RecipeInput(Parsed):
    """What a request for a recipe may hold beside the fields of every request, and its bounds.

    One without a default has to be sent, unless it is `optional`: then what refers to it is left out with it.
    """

    type: InputType
    description: str | None = Field(default=None, max_length=1_000)
    default: JsonValue = None
    minimum: float | None = Field(default=None, allow_inf_nan=False)
    maximum: float | None = Field(default=None, allow_inf_nan=False)
    choices: tuple[str | int | float, ...] = ()
    optional: bool = False

    @property
    def is_required(self) -> bool:
        """True if every request has to send it."""
        return self.default is None and not self.optional

    @property
    def value_schema(self) -> Schema:
        """The JSON Schema of its values."""
        schema: Schema = {"type": _JSON_TYPES.get(self.type, self.type)}
        if self.type == "regions":
            schema = {**REGIONS_SCHEMA}
        if self.choices:
            schema["enum"] = [*self.choices]
        elif self.type == "text":
            schema["maxLength"] = MAX_PROMPT_CHARS
        elif self.type in MEDIA:
            schema["minLength"] = 1
        for name, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            if bound is not None:
                schema[name] = int(bound) if bound.is_integer() else bound
        if self.default is not None:
            schema["default"] = self.default
        text = self.description or _MEANT.get(self.type)
        return schema | ({"description": text} if text else {})


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """One step: its name, and the fields of its request, in which references stand for values."""

    name: str
    index: int
    fields: Mapping[str, JsonValue]

    @property
    def model(self) -> str:
        """The model that it names."""
        return str(self.fields.get("model"))

    @property
    def frames_of(self) -> InputReference | StepReference | None:
        """The video that it makes a video of, frame by frame; None where it begins from no frames."""
        text = self.fields.get("image")
        parts = parts_of(text) if isinstance(text, str) else []
        reference = parts[0] if len(parts) == 1 else None
        if isinstance(reference, InputReference):
            return reference if reference.frames else None
        return reference if isinstance(reference, StepReference) and reference.part == "frames" else None

    @property
    def is_detail(self) -> bool:
        """True if it draws parts of an image again, each as a job of its own."""
        return "detail" in self.fields

    def seed(self, first: int) -> int:
        """Return its seed where it states none: the recipe's own for the first step, and further on for each later."""
        return (first + SEED_STRIDE * self.index) % (MAX_SEED + 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that was read and is right in itself; whether its models take its fields they have to say.

    `outputs` names the steps whose images come back. `used` are those that other steps refer to. `digest` is of the
    file's text. `lines` and `file` say where everything was written.
    """

    id: str
    description: str | None
    task: Task
    inputs: Mapping[str, RecipeInput]
    steps: tuple[RecipeStep, ...]
    outputs: tuple[str, ...]
    used: frozenset[str]
    digest: str
    file: str
    lines: Mapping[KeyPath, int]

    @property
    def detectors(self) -> tuple[str, ...]:
        """The files of the operator's that find parts for its steps."""
        details = [step.fields["detail"] for step in self.steps if step.is_detail]
        finds = [str(detail.get("find")) for detail in details if isinstance(detail, dict)]
        return tuple(find for find in finds if find.startswith(LOCAL))

    @property
    def models(self) -> tuple[str, ...]:
        """The names of its steps' models, each once."""
        return tuple(dict.fromkeys(step.model for step in self.steps))

    def fail(self, keys: KeyPath, sentence: str) -> RecipeError:
        """Return the error for a place in its file, or for the nearest one above that the file has."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return RecipeError(self.file, self.lines.get(keys, 1), sentence)
