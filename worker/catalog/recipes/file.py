"""Reader of a recipe's file. Any mistake in it is one sentence, with its line and the fix.

What can be wrong in the file itself is found here: names, types, references, steps that nothing needs. Whether a
model takes a step's fields is asked of the model (`service.recipes.checking`).
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import Field, JsonValue

from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.values import check_value
from worker.catalog.operator_file import FileError, KeyPath, OperatorFile
from worker.catalog.recipes.recipe import MEDIA, InputType, Recipe, RecipeError, RecipeInput, RecipeStep
from worker.catalog.recipes.references import InputReference, Mention, NoReference, Part, Reference, mentions
from worker.core.errors import WorkerError
from worker.core.model import Parsed, Task

ENDINGS = (".yaml", ".yml")
MAX_STEPS = 16
_LOCAL = "file:"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
# Of the fields of every request, those that a recipe may offer as its own inputs, and their types.
_COMMON: Mapping[str, InputType] = {
    "prompt": "text",
    "negative_prompt": "text",
    "image": "image",
    "mask_image": "image",
    "control_image": "image",
    "num_images": "integer",
    "video": "video",
}
# Fields of the whole request, which no step has for itself.
WHOLE = ("action", "traceparent", "output", "s3Config", "timeout_s", "progress", "previews", "profile", "params")
_VIDEO = re.compile(r"(\w+_)?video(_url|_base64)?")
Kind = Literal["value", "image", "video", "frames", "regions"]
_ONE: Mapping[Kind, str] = {"image": "an image", "video": "a video", "regions": "regions"}
_IS_ONE: Mapping[Kind, str] = {"image": "is one", "video": "is one", "frames": "are some", "regions": "are some"}
_OF_PART: Mapping[Part, Kind] = {"images": "image", "image": "image", "video": "video", "frames": "frames"}
_MEDIA = re.compile(r"(?!num_)(\w+_)?(images?|mask)(_\d)?")


# What a step that draws parts of an image again has to have.
_OF_DETAIL: Mapping[str, str] = {
    "image": "the image that parts of are drawn again",
    "width": "of each part as it is drawn, in pixels",
    "height": "of each part as it is drawn, in pixels",
}


class RecipeFile(Parsed):
    """The whole file; inputs and steps are read one by one, so that a mistake has its own line."""

    description: str | None = Field(default=None, max_length=1_000)
    task: Task | None = None
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    steps: dict[str, JsonValue] = Field(min_length=1, max_length=MAX_STEPS)
    outputs: tuple[str, ...] = ()


def recipe_files(place: Path) -> list[Path]:
    """List the recipes in a folder, in order of their names; a file is one itself."""
    if place.is_file():
        return [place]
    return sorted(path for path in place.iterdir() if path.suffix in ENDINGS and path.is_file())


def load_recipes(place: Path) -> Mapping[str, Recipe]:
    """Read the recipes of a folder, or of one file, by their ids. Raises RecipeError."""
    recipes: dict[str, Recipe] = {}
    try:
        paths = recipe_files(place)
    except OSError as error:
        raise RecipeError(place.name, 1, f"cannot be read ({error.strerror}); check RECIPES.") from None
    for path in paths:
        recipe = read_recipe(path)
        if recipe.id in recipes:
            raise recipe.fail((), f"{recipes[recipe.id].file} is {recipe.id} already; rename one of the two files.")
        recipes[recipe.id] = recipe
    return MappingProxyType(recipes)


def read_recipe(path: Path, text: str | None = None) -> Recipe:
    """Read one recipe, whose id is the name of its file, or a `text` that is to stand there. Raises RecipeError."""
    return _Reading(path, text).recipe()


class _Reading(OperatorFile):
    """One reading of one recipe."""

    error = RecipeError
    keys = "description, task, inputs, steps and outputs"

    def __init__(self, path: Path, text: str | None) -> None:
        super().__init__(path)
        self._text = text

    def read(self) -> bytes:
        return super().read() if self._text is None else self._text.encode("utf-8", "replace")

    @property
    def label(self) -> str:
        return f"{self.path.resolve().parent.name}/{self.path.name}"

    def fail(self, place: KeyPath | int, sentence: str) -> FileError:
        return self.error(self.label, place if isinstance(place, int) else self.line(place), sentence)

    def recipe(self) -> Recipe:
        file = self.parsed(RecipeFile, self.data(), ())
        if not _NAME.fullmatch(self.path.stem):
            raise self.fail(1, f"{self.path.stem[:64]!r} cannot be a model id; name the file in a-z, 0-9, - and _.")
        inputs = {name: self.input(name, value) for name, value in file.inputs.items()}
        steps = tuple(self.step(name, index, value) for index, (name, value) in enumerate(file.steps.items()))
        used = self.check_references(inputs, steps)
        outputs = self.outputs(file, steps)
        self.check_needed(inputs, steps, used, outputs)
        return Recipe(
            id=self.path.stem,
            description=file.description,
            task=file.task or _task(inputs),
            inputs=MappingProxyType(inputs),
            steps=steps,
            outputs=outputs,
            used=frozenset(used & {step.name for step in steps}),
            digest=hashlib.sha256(self.read()).hexdigest(),
            file=self.label,
            lines=MappingProxyType(self.lines),
        )

    def input(self, name: str, value: JsonValue) -> RecipeInput:
        """Return one input, with a name and a default that a request can have."""
        keys: KeyPath = ("inputs", name)
        self.check_name(keys, name)
        parsed = self.parsed(RecipeInput, {} if value is None else value, keys)
        wanted = _COMMON.get(name)
        if wanted is None and name in (*common_fields(), *WHOLE):
            raise self.fail(keys, f"inputs.{name} is a field of every request and cannot be an input; rename it.")
        if wanted not in (None, parsed.type):
            raise self.fail((*keys, "type"), f"inputs.{name} must be of type {wanted}, as in every other request.")
        self.check_bounds(keys, name, parsed)
        if parsed.default is not None:
            self.check_default(keys, name, parsed)
        return parsed

    def check_bounds(self, keys: KeyPath, name: str, parsed: RecipeInput) -> None:
        """Check that bounds are a number's and the right way round, and that choices can be chosen."""
        is_number = parsed.type in ("integer", "number")
        for bound in ("minimum", "maximum"):
            if getattr(parsed, bound) is not None and not is_number:
                raise self.fail((*keys, bound), f"inputs.{name}.{bound} is for numbers; it is of type {parsed.type}.")
        if parsed.minimum is not None and parsed.maximum is not None and parsed.minimum > parsed.maximum:
            raise self.fail((*keys, "minimum"), f"inputs.{name}.minimum is above its maximum; exchange the two.")
        if is_number and not parsed.choices and {parsed.default, parsed.minimum, parsed.maximum} == {None}:
            raise self.fail(keys, f"inputs.{name} needs a default or a minimum, with which its models can be asked.")
        if parsed.choices and parsed.type not in ("text", "integer", "number"):
            raise self.fail((*keys, "choices"), f"inputs.{name}.choices are texts or numbers, not {parsed.type}.")

    def check_default(self, keys: KeyPath, name: str, parsed: RecipeInput) -> None:
        """Check that a default is a value which a request could send."""
        if parsed.type in MEDIA:
            raise self.fail(
                (*keys, "default"), f"inputs.{name}: {_ONE[_kind(parsed.type)]} has no default; make it optional."
            )
        try:
            check_value(f"inputs.{name}.default", parsed.default, parsed.value_schema)
        except WorkerError as error:
            raise self.fail((*keys, "default"), error.message) from None

    def step(self, name: str, index: int, value: JsonValue) -> RecipeStep:
        """Return one step, which names a model and no field of the whole request."""
        keys: KeyPath = ("steps", name)
        self.check_name(keys, name)
        if not isinstance(value, dict) or not isinstance(value.get("model"), str):
            raise self.fail((*keys, "model"), f"steps.{name} needs a model; name one of models.yaml, or a reference.")
        if "${" in str(value["model"]):
            raise self.fail((*keys, "model"), f"steps.{name}.model must be written out; it is checked at the start.")
        for field in WHOLE:
            if field in value:
                raise self.fail((*keys, field), f"{field} is of the whole request, not of steps.{name}; remove it.")
        if "detail" in value:
            self.check_detail(keys, name, value)
        return RecipeStep(name, index, MappingProxyType({key: self.placed(item, key) for key, item in value.items()}))

    def check_detail(self, keys: KeyPath, name: str, value: Mapping[str, JsonValue]) -> None:
        """Check that a step which draws parts again has an image, and the size at which each part is drawn."""
        if not isinstance(value["detail"], dict):
            raise self.fail((*keys, "detail"), f"steps.{name}.detail must be a mapping, as {{find: faces}}.")
        if "${" in str(value["detail"].get("find")):
            raise self.fail((*keys, "detail", "find"), f"steps.{name}.detail.find must be written out, as a model is.")
        for field, meaning in _OF_DETAIL.items():
            if field not in value:
                raise self.fail((*keys, "detail"), f"steps.{name} needs {field}: {meaning}.")

    def placed(self, value: JsonValue, name: str) -> JsonValue:
        """Return `value` with paths of local files absolute: they start from the folder of this recipe."""
        if isinstance(value, dict):
            return {key: self.placed(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self.placed(item, name) for item in value]
        if not isinstance(value, str) or not value.startswith(_LOCAL) or "prompt" in name:
            return value
        return f"{_LOCAL}{(self.path.resolve().parent / value.removeprefix(_LOCAL)).resolve()}"

    def check_name(self, keys: KeyPath, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise self.fail(keys, f"{name[:64]!r} cannot be a name here; use a-z, 0-9, - and _, a letter first.")

    def check_references(self, inputs: Mapping[str, RecipeInput], steps: tuple[RecipeStep, ...]) -> set[str]:
        """Return the names of inputs and steps that are referred to. Raises for what is not there, or not yet."""
        used: set[str] = set()
        for step in steps:
            keys: KeyPath = ("steps", step.name)
            try:
                for mention in mentions(dict(step.fields)):
                    used.add(self.checked(step, mention, inputs, steps))
            except NoReference as error:
                text, path = error.args
                raise self.fail((*keys, *path), f"{text}.") from None
        return used

    def checked(
        self, step: RecipeStep, mention: Mention, inputs: Mapping[str, RecipeInput], steps: tuple[RecipeStep, ...]
    ) -> str:
        """Return what a reference refers to, which is there, earlier, and of the type of its place."""
        keys: KeyPath = ("steps", step.name, *mention.path)
        place = ".".join(map(str, keys))
        reference = mention.reference
        if isinstance(reference, InputReference):
            if reference.name not in inputs:
                raise self.fail(
                    keys, f"{place}: there is no input {reference.name}; {_nearest(reference.name, inputs)}."
                )
            of_video = inputs[reference.name].type == "video"
            if reference.frames and not of_video:
                raise self.fail(keys, f"{place}: inputs.{reference.name} is no video, and has no frames.")
            if reference.frames and not inputs[reference.name].is_required:
                raise self.fail(keys, f"{place}: without inputs.{reference.name} there are no frames; let it be sent.")
            self.check_place(mention, keys, "frames" if reference.frames else _kind(inputs[reference.name].type))
            if not mention.is_alone and inputs[reference.name].type not in ("text", "integer", "number"):
                raise self.fail(keys, f"{place}: {reference.name} is no text or number; it cannot be part of a text.")
            return f"inputs.{reference.name}"
        by_name = {each.name: each for each in steps}
        other = by_name.get(reference.step)
        if other is None:
            raise self.fail(keys, f"{place}: there is no step {reference.step}; {_nearest(reference.step, by_name)}.")
        if other.index >= step.index:
            line = self.line(("steps", other.name))
            itself = "itself" if other is step else f"{other.name} (line {line}), which comes later"
            raise self.fail(keys, f"{place} refers to {itself}; a step can use only steps before it.")
        self.check_place(mention, keys, _OF_PART.get(reference.part, "value"))
        return other.name

    def check_place(self, mention: Mention, keys: KeyPath, kind: Kind) -> None:
        """Check that an image stands where images are taken, alone, and nothing else does; so with the other kinds.

        Frames stand in a step's image, which then is one of them at a time.
        """
        place, taken = ".".join(map(str, keys)), _kind_at(mention.path)
        if kind == "frames" and mention.path == ("image",) and mention.is_alone:
            return
        if kind != "value" and not (kind == taken and mention.is_alone):
            raise self.fail(keys, f"{place} takes no {kind}, and {_written(mention.reference)} {_IS_ONE[kind]}.")
        if kind == "value" and taken != kind:
            raise self.fail(keys, f"{place} takes {_ONE[taken]}, and {_written(mention.reference)} is none.")

    def outputs(self, file: RecipeFile, steps: tuple[RecipeStep, ...]) -> tuple[str, ...]:
        """Return the steps whose images come back: as written, else the last one."""
        names = [step.name for step in steps]
        for index, name in enumerate(file.outputs):
            if name not in names:
                raise self.fail(("outputs", index), f"outputs: there is no step {name}; {_nearest(name, names)}.")
            if name in file.outputs[:index]:
                raise self.fail(("outputs", index), f"outputs names {name} twice; remove one.")
        return file.outputs or (names[-1],)

    def check_needed(
        self,
        inputs: Mapping[str, RecipeInput],
        steps: tuple[RecipeStep, ...],
        used: set[str],
        outputs: tuple[str, ...],
    ) -> None:
        """Raise for what costs its caller something and changes nothing."""
        for name in inputs:
            if f"inputs.{name}" not in used:
                raise self.fail(("inputs", name), f"inputs.{name} is used by no step; remove it, or refer to it.")
        for step in steps:
            if step.name not in used and step.name not in outputs:
                text = f"steps.{step.name} is used by no step and is no output; remove it, or name it in outputs."
                raise self.fail(("steps", step.name), text)


def _kind(type_: InputType) -> Kind:
    return type_ if type_ in ("image", "video", "regions") else "value"


def _kind_at(path: tuple[str | int, ...]) -> Kind:
    """Return what the field at a path below a step takes."""
    if path[:2] == ("detail", "regions"):
        return "regions" if len(path) == 2 else "value"
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    return "image" if _MEDIA.fullmatch(name) else "video" if _VIDEO.fullmatch(name) else "value"


def _task(inputs: Mapping[str, RecipeInput]) -> Task:
    """Return the task of a recipe that names none: what its inputs are for."""
    if "mask_image" in inputs:
        return Task.INPAINTING
    if any(each.type == "video" and each.is_required for each in inputs.values()):
        return Task.VIDEO_TO_VIDEO
    starts = any(each.type == "image" and each.is_required for each in inputs.values())
    return Task.IMAGE_TO_IMAGE if starts else Task.TEXT_TO_IMAGE


def _nearest(name: str, names: "Mapping[str, object] | list[str]") -> str:
    hits = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"{hits[0]} is the nearest" if hits else f"there are {', '.join(names) or 'none'}"


def _written(reference: Reference) -> str:
    if isinstance(reference, InputReference):
        return f"${{inputs.{reference.name}{'.frames' if reference.frames else ''}}}"
    return f"${{steps.{reference.step}.{reference.part}}}"
