"""From a request for a recipe to the request of each of its steps: values in the places of references."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue, ValidationError

from worker.catalog.interface.values import check_value, plain_value
from worker.catalog.recipes.detail import Detail
from worker.catalog.recipes.recipe import MEDIA, Recipe, RecipeInput, RecipeStep
from worker.catalog.recipes.references import MISSING, Filled, InputReference, Reference, StepReference, filled
from worker.catalog.recipes.schema import OF_EVERY_REQUEST
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.model import Task
from worker.core.request import GenerationRequest
from worker.media.video import Given
from worker.wire.request import ALIASES, decode_envelope, decode_generation
from worker.wire.validation import field_error

# What is of a whole image, and not of a part of it.
_NOT_OF_A_PART = (
    *("mask_image", "images", "num_images", "outpaint", "video"),
    *("control_image", "control_images", "controlnets"),
)
_NOT_OF_A_FRAME = ("images", "num_images", "video")
_OF_EACH_STEP = ("quality", "fallback", "progress", "previews")
Values = Mapping[str, Filled]


@dataclass(frozen=True, slots=True)
class Made:
    """What a step made: the texts that stand for its images, the pixels of those made here, and its first seed.

    Of a video made here there is one text, of another worker's the texts of all frames; `fps` is 0 of images.
    """

    images: tuple[str, ...]
    seed: int
    given: Mapping[str, Given] = field(default_factory=dict)
    fps: float = 0.0


def sent_inputs(recipe: Recipe, request: GenerationRequest) -> Values:
    """Return the values of a recipe's inputs, as sent or by default.

    Raises InvalidRequest for one that is missing, UnknownParameter and ParameterOutOfRange, naming the field.
    """
    sent = _sent(request)
    if request.task not in (None, recipe.task):
        raise InvalidRequest(f"task of {recipe.id} is {recipe.task}; {request.task} was sent.", field="task")
    for name in sent:
        if name not in recipe.inputs:
            raise UnknownParameter(
                f"{name[:64]} is no input of the recipe {recipe.id}, which takes {', '.join(recipe.inputs) or 'none'}; "
                "leave it out.",
                field=name[:64],
            )
    return {name: _value(name, each, sent.get(name), recipe) for name, each in recipe.inputs.items()}


def _sent(request: GenerationRequest) -> dict[str, JsonValue]:
    """Return the fields of a request that say something, beside those of every request."""
    said = request.model_fields_set - {"params", *OF_EVERY_REQUEST}
    fields: dict[str, JsonValue] = request.model_dump(mode="json", include=said)
    adapters = fields.pop("adapters", None)
    fields |= adapters if isinstance(adapters, dict) else {}
    return {name: value for name, value in (fields | request.params).items() if value is not None}


def _value(name: str, each: RecipeInput, value: JsonValue, recipe: Recipe) -> Filled:
    if value is None:
        if each.is_required:
            raise InvalidRequest(f"{name} is required for {recipe.id}; send it.", field=name)
        return MISSING if each.default is None else each.default
    if each.type in MEDIA:  # of any length, and read with the step that takes it
        if isinstance(value, list) and len(value) == 1:  # as any other request holds a video
            value = value[0]
        if not isinstance(value, str):
            raise ParameterOutOfRange(f"{name} must be a text: base64, a data: URI or an https URL.", field=name)
        return value
    return check_value(name, plain_value(value, each.value_schema), each.value_schema)


def step_request(
    step: RecipeStep, request: GenerationRequest, first_seed: int, inputs: Values, made: Mapping[str, Made]
) -> GenerationRequest:
    """Return the request of one step. Raises as reading any other request does."""
    fields = _fields(step, inputs, made)
    if step.is_detail:
        fields = _of_a_part(step, fields)
    elif step.frames_of is not None:
        _refuse(fields, _NOT_OF_A_FRAME, "frames that each become one image")
    envelope = decode_envelope({**fields, "seed": fields.get("seed", step.seed(first_seed))})
    own = decode_generation(envelope.fields)
    stated = {name for name in _OF_EACH_STEP if name in envelope.fields}
    return own.model_copy(update={name: getattr(request, name) for name in _OF_EACH_STEP if name not in stated})


def detail_of(step: RecipeStep, inputs: Values, made: Mapping[str, Made]) -> Detail:
    """Return what a step says of the parts that it draws again. Raises ParameterOutOfRange, naming the field."""
    said = _fields(step, inputs, made).get("detail")
    try:
        return Detail.model_validate_json(json.dumps(said))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":
            raise ParameterOutOfRange(f"detail {first['ctx']['error']}.", field="detail") from None
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][0])[:64]
            keys = ", ".join(Detail.model_fields)
            raise UnknownParameter(f"detail.{name} is no key of detail; they are {keys}.", field="detail") from None
        fault = field_error(error)
        fault.message = fault.message if fault.message.startswith("detail") else f"detail.{fault.message}"
        fault.field = f"detail.{fault.field}"
        raise fault from None


def mask_name(step: RecipeStep) -> str:
    """Return the text that stands for the mask of a part."""
    return f"steps.{step.name}.mask"


def _fields(step: RecipeStep, inputs: Values, made: Mapping[str, Made]) -> dict[str, JsonValue]:
    fields = filled(dict(step.fields), _lookup(inputs, made))
    if not isinstance(fields, dict):
        raise TypeError("a step's fields are a mapping")
    return fields


def _of_a_part(step: RecipeStep, fields: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the fields of the request for a part: one image under a mask that its region gives."""
    _refuse(fields, _NOT_OF_A_PART, "parts that are drawn again, each one image under its own mask")
    part = {name: value for name, value in fields.items() if name != "detail"}
    return {"task": Task.INPAINTING, **part, "mask_image": mask_name(step)}


def _refuse(fields: Mapping[str, JsonValue], names: Collection[str], of: str) -> None:
    """Raise InvalidRequest for fields that a step of several jobs cannot have."""
    own = {ALIASES.get(name, name): name for name in fields}
    for name in names:
        if name in own:
            raise InvalidRequest(f"{own[name]} cannot be said of {of}; remove it.", field=own[name])


def given_to(step: RecipeStep, made: Mapping[str, Made]) -> Mapping[str, Given]:
    """Return the images and videos of earlier steps, by the texts that stand for them."""
    return {text: item for each in made.values() for text, item in each.given.items()} if step.index else {}


def line_of(recipe: Recipe, step: RecipeStep, field: str | None) -> tuple[str | int, ...]:
    """Return the place in a recipe's file of a step's field, in whatever spelling the file has it."""
    name, *below = (field or "model").partition("[")[0].split(".")
    spellings = [name, *(alias for alias, canonical in ALIASES.items() if canonical == name)]
    written = next((each for each in spellings if each in step.fields), None)
    return ("steps", step.name, *([written, *below] if written else []))


def _lookup(inputs: Values, made: Mapping[str, Made]) -> Callable[[Reference], Filled]:
    def value_of(reference: Reference) -> Filled:
        if isinstance(reference, InputReference):
            return inputs[reference.name]
        return _part(made[reference.step], reference)

    return value_of


def _part(made: Made, reference: StepReference) -> JsonValue:
    match reference.part:
        case "image" | "frames":  # of which each takes this place in its turn
            return made.images[0]
        case "images" | "video":
            return [*made.images]
        case "seed":
            return made.seed
