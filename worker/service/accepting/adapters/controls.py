"""The ControlNets and T2I-Adapters of a request: what they are before anything is fetched, and their images.

Which class draws depends on what they are, so their headers are read while the job is accepted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.adapters import ADAPTERS
from worker.catalog.interface.bounds import BOUNDS
from worker.catalog.interface.controls import control_call, controlled_rows, modes_of
from worker.catalog.interface.sizes import SizeBounds, size_bounds, size_within
from worker.catalog.pipelines.controlled import Controlled
from worker.core.adapter import Control, ControlNetSpec
from worker.core.errors import IncompatibleAdapter, InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.image import Raster
from worker.core.model import Detection, Kind
from worker.core.request import GenerationRequest
from worker.media.canvas import enlarge
from worker.media.images import fit
from worker.media.preprocessing import preprocess
from worker.service.accepting.adapters.compatibility import blamed_on, check_family, check_kind
from worker.service.accepting.inputs import MediaReader
from worker.service.accepting.resolving import ModelResolver

_FIELD = "controlnets"
_UNREAD = {"xlabs": "a ControlNet in the layout of XLabs"}


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a request's controls are, in their order, and the row of the class that draws with them."""

    row: Controlled
    detections: tuple[Detection, ...]
    acts: bool  # whether one of them has a scale above 0: else the class without controls draws


def recognise_controls(request: GenerationRequest, call: ModelCall, resolver: ModelResolver) -> Recognised | None:
    """What the request's controls are; None where it has none. Blocking.

    Raises IncompatibleAdapter for what is no control, or one that the class of `call` does not take;
    ParameterOutOfRange and UnknownParameter for what they are asked.
    """
    controls = request.adapters_of(ControlNetSpec)
    if not controls:
        return None
    rows = controlled_rows(call)
    detections = []
    for index, control in enumerate(controls):
        with blamed_on(_FIELD):
            source = resolver.adapter_source(control.model, control.weight_name, _FIELD)
            found = resolver.look_at_adapter(source)
        if found is None:  # a pickle on a server: what it is shows once it is here, and is checked then
            found = Detection(Kind.CONTROLNET, "torch", component_class=rows[0].component)
        check_control(found, control, call)
        _check_asked(control, found, f"{_FIELD}[{index}]")
        detections.append(found)
    row = _common_row(controls, detections, call)
    _check_together(controls, row)
    _check_parameters(request, row)
    return Recognised(row, tuple(detections), any(control.scale > 0 for control in controls))


def idle_controls(request: GenerationRequest) -> tuple[str, ...]:
    """A word for controls that change nothing: they are not even fetched."""
    return tuple(
        f"{_FIELD}[{index}] has a scale of 0 and was left out."
        for index, control in enumerate(request.adapters_of(ControlNetSpec))
        if control.scale == 0
    )


def read_controls(
    request: GenerationRequest,
    recognised: Recognised,
    model: Model,
    params: Mapping[str, JsonValue],
    reader: MediaReader,
) -> tuple[tuple[Control, ...], dict[str, JsonValue]]:
    """The controls that do anything, their images as they see them, and `params` with the size that is drawn.

    A request from text that asks for no size is drawn at the proportions of the first image. Raises InvalidImage and
    its kin, naming the field.
    """
    bounds = size_bounds(model)
    controls = request.adapters_of(ControlNetSpec)
    images = [_image(request, index, bounds.multiple, reader) for index in range(len(controls))]
    sized = {**_plain_defaults(recognised.row), **params}
    from_text = not (request.image or request.images)
    if from_text and not request.params.keys() & {"width", "height"}:
        sized |= _at_proportions(images[0], params, bounds)
    width, height = sized.get("width"), sized.get("height")
    found, call = [], control_call(recognised.row.pipeline)
    for control, seen, image in zip(controls, recognised.detections, images, strict=True):
        fitted = fit(image, width, height) if isinstance(width, int) and isinstance(height, int) else image
        if control.scale > 0:
            shown = preprocess(fitted, control.preprocess) if control.preprocess else fitted
            found.append(Control(control, shown, call, _mode(control, seen)))
    return tuple(found), sized


def check_control(found: Detection, spec: ControlNetSpec, call: ModelCall) -> None:
    """Refuse what is no control, what diffusers has no class for, and what was made for another family."""
    check_kind(found, spec)
    if found.component_class is None or found.variant in _UNREAD:
        what = _UNREAD.get(found.variant or "", "of a layout that diffusers has no class for")
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} is {what}, and is not read here; use a {ADAPTERS[_FIELD].title} that "
            "diffusers reads.",
            field=_FIELD,
            details={"evidence": list(found.evidence)},
        )
    check_family(found, spec, call)
    rows = controlled_rows(call)
    if not any(row.takes(found) for row in rows):
        kind = f"{found.component_class}{' for inpainting' if found.variant == 'inpainting' else ''}"
        taken = dict.fromkeys(f"{row.component}{' for inpainting' if row.inpaints else ''}" for row in rows)
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} is a {kind}, which does not serve {call.task} of {call.spec.id}; "
            f"it takes {' or '.join(taken)}.",
            field=_FIELD,
            details={"evidence": list(found.evidence)},
        )


def _check_asked(control: ControlNetSpec, found: Detection, place: str) -> None:
    """Refuse a window without steps, and a mode that the control does not have."""
    if control.start >= control.end:
        raise ParameterOutOfRange(
            f"{place}.start must be less than its end; {control.start:g} and {control.end:g} were sent.", field=_FIELD
        )
    modes = modes_of(found)
    if control.mode is not None and not modes:
        raise UnknownParameter(
            f"{place}.mode is for a union ControlNet, which {control.model} is not; leave it out.", field=_FIELD
        )
    if modes and _mode(control, found) is None:
        sent = f"{control.mode!r} was sent" if control.mode else "none was sent"
        raise ParameterOutOfRange(f"{place}.mode must be one of {', '.join(modes)}; {sent}.", field=_FIELD)


def _common_row(controls: Sequence[ControlNetSpec], detections: Sequence[Detection], call: ModelCall) -> Controlled:
    """The one row that takes all controls. Raises IncompatibleAdapter where their kinds have no class in common."""
    row = next((row for row in controlled_rows(call) if all(row.takes(found) for found in detections)), None)
    if row is None:
        kinds = " and ".join(dict.fromkeys(str(found.component_class) for found in detections))
        raise IncompatibleAdapter(
            f"{_FIELD}: {kinds} cannot be used together; send controls of one kind for {call.task} of {call.spec.id}.",
            field=_FIELD,
        )
    sources = {(control.model, control.weight_name) for control in controls}
    if len(controls) > 1 and (row.several == "one" or (row.several == "same" and len(sources) > 1)):
        what = "one control" if row.several == "one" else "one ControlNet, which may be given several images"
        raise ParameterOutOfRange(
            f"{_FIELD}: {call.task} of {call.spec.id} takes {what}; {len(controls)} were sent.", field=_FIELD
        )
    return row


def _check_together(controls: Sequence[ControlNetSpec], row: Controlled) -> None:
    """Refuse a start or end that the class cannot keep to."""
    call = control_call(row.pipeline)
    for index, control in enumerate(controls):
        for name, taken, usual in (("start", call.start, 0.0), ("end", call.end, 1.0)):
            if getattr(control, name) != usual and taken is None:
                raise UnknownParameter(
                    f"{_FIELD}[{index}].{name} is not taken by {row.pipeline}, which follows its controls in all "
                    "steps; leave it out.",
                    field=_FIELD,
                )
    if call.end is not None and call.start is None and len({control.end for control in controls}) > 1:
        raise ParameterOutOfRange(f"{_FIELD}: end must be the same for all controls of {row.pipeline}.", field=_FIELD)


def _check_parameters(request: GenerationRequest, row: Controlled) -> None:
    """Refuse by a pipeline's own name what the controls themselves say."""
    sent = {*request.params, *(name for name in ("control_image", "control_images") if getattr(request, name))}
    for name in sorted(sent & {*control_call(row.pipeline), "control_image", "control_images"} - {"image"}):
        raise UnknownParameter(f"{name} is told by {_FIELD}: send image, scale, start, end and mode there.", field=name)


def _plain_defaults(row: Controlled) -> dict[str, JsonValue]:
    """What a request leaves out is as without controls: the strength of image-to-image, say, which has two defaults."""
    plain, controlled = call_parameters(row.plain) or {}, call_parameters(row.pipeline) or {}
    return {
        name: parameter.default
        for name, parameter in plain.items()
        if name in controlled and parameter.default not in (None, controlled[name].default) and name in BOUNDS
    }


def _mode(control: ControlNetSpec, found: Detection) -> int | None:
    """A union's number for what the image shows: as told, else as the preprocessing makes it."""
    modes = modes_of(found)
    named = control.mode or control.preprocess
    return modes.index(named) if named in modes else None


def _image(request: GenerationRequest, index: int, multiple: int, reader: MediaReader) -> Raster:
    control = request.adapters_of(ControlNetSpec)[index]
    text = control.image or request.image or next(iter(request.images), None)
    if text is None:
        raise InvalidRequest(
            f"{_FIELD}[{index}].image is missing: send the image to follow as base64, data: URI or https URL.",
            field=_FIELD,
        )
    image = reader.image(text, _FIELD)
    if control.image is None and request.outpaint is not None:  # what is drawn is larger than what was sent
        image = enlarge(image, request.outpaint, multiple).image
    return reader.take(image, _FIELD)


def _at_proportions(image: Raster, params: Mapping[str, JsonValue], bounds: SizeBounds) -> dict[str, JsonValue]:
    """The usual number of pixels, at the proportions of `image`."""
    width, height = params.get("width"), params.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        return {}
    scale = math.sqrt(width * height / (image.width * image.height))
    wide, high = size_within(round(image.width * scale), round(image.height * scale), bounds)
    return {"width": wide, "height": high}
