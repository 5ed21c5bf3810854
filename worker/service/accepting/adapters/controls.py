"""The ControlNets and T2I-Adapters of a request: detected before anything is fetched, and read with their images.

The class that generates depends on their kind, so their headers are read while the job is accepted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.adapters import ADAPTERS
from worker.catalog.interface.bounds import BOUNDS
from worker.catalog.interface.controls import control_call, controlled_rows, modes_of
from worker.catalog.interface.sizes import SizeBounds, size_bounds, size_within
from worker.catalog.pipelines.controlled import Controlled
from worker.catalog.pipelines.table import pipeline_row
from worker.core.adapter import Control, ControlNetSpec
from worker.core.errors import IncompatibleAdapter, InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.image import Raster
from worker.core.model import Detection, Kind
from worker.core.request import GenerationRequest
from worker.media.canvas import enlarge
from worker.media.images import fit
from worker.media.preprocessing import preprocess
from worker.service.accepting.adapters.compatibility import Inspected, blamed_on
from worker.service.accepting.media_reader import MediaReader
from worker.service.accepting.resolving import ModelResolver

_FIELD = "controlnets"
_UNREAD = {"xlabs": "a ControlNet in the layout of XLabs"}


@dataclass(frozen=True, slots=True)
class Recognised:
    """The detections of a request's controls, in their order, and the row of the class that generates with them."""

    row: Controlled
    detections: tuple[Detection, ...]
    acts: bool  # True if one of them has a scale above 0; else the class without controls generates


def recognise_controls(request: GenerationRequest, call: ModelCall, resolver: ModelResolver) -> Recognised | None:
    """Detect the request's controls; None without any. Blocking.

    Raises IncompatibleAdapter for a file that is no control, or one that the class of `call` does not take.
    Raises ParameterOutOfRange and UnknownParameter for their fields.
    """
    controls = request.adapters_of(ControlNetSpec)
    if not controls:
        return None
    rows = controlled_rows(call)
    detections = []
    for index, control in enumerate(controls):
        with blamed_on(_FIELD):
            source = resolver.adapter_source(control.model, control.weight_name, _FIELD)
            detection = resolver.look_at_adapter(source)
        if detection is None:  # a pickle on a server: its kind is checked once it is here
            detection = Detection(Kind.CONTROLNET, "torch", component_class=rows[0].component)
        inspected = Inspected(control, detection)
        check_control(inspected, call)
        _check_fields(inspected, f"{_FIELD}[{index}]")
        detections.append(detection)
    row = _common_row(controls, detections, call)
    _check_together(controls, row)
    _check_parameters(request, row)
    return Recognised(row, tuple(detections), any(control.scale > 0 for control in controls))


def idle_controls(request: GenerationRequest) -> tuple[str, ...]:
    """Return a warning for each control that changes nothing: it is not even fetched."""
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
    """Return the active controls with their images, prepared and fitted, and `params` with the generated size.

    A request from text without a size gets the proportions of the first image. Raises InvalidImage and
    others, naming the field.
    """
    bounds = size_bounds(model)
    bounds = replace(bounds, multiple=math.lcm(bounds.multiple, pipeline_row(recognised.row.pipeline).size_multiple))
    _check_sides(request, bounds.multiple)
    controls = request.adapters_of(ControlNetSpec)
    images = [_image(request, index, bounds.multiple, reader) for index in range(len(controls))]
    sized_params = {**_plain_defaults(recognised.row), **params}
    from_text = not (request.image or request.images)
    if from_text and not request.params.keys() & {"width", "height"}:
        sized_params |= _at_proportions(images[0], params, bounds)
    width, height = sized_params.get("width"), sized_params.get("height")
    active, call = [], control_call(recognised.row.pipeline)
    for control, detection, image in zip(controls, recognised.detections, images, strict=True):
        fitted = fit(image, width, height) if isinstance(width, int) and isinstance(height, int) else image
        if control.scale > 0:
            prepared = preprocess(fitted, control.preprocess) if control.preprocess else fitted
            active.append(Control(control, reader.kept(prepared), call, _mode(control, detection)))
    return tuple(active), sized_params


def check_control(inspected: Inspected[ControlNetSpec], call: ModelCall) -> None:
    """Refuse a file that is no control, has no class in diffusers, or was made for another family."""
    inspected.check_kind()
    spec, detection = inspected.spec, inspected.detection
    if detection.component_class is None or detection.variant in _UNREAD:
        reason = _UNREAD.get(detection.variant or "", "of a layout that diffusers has no class for")
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} is {reason}, and is not read here; use a {ADAPTERS[_FIELD].title} that "
            "diffusers reads.",
            field=_FIELD,
            details={"evidence": list(detection.evidence)},
        )
    inspected.check_family(call)
    rows = controlled_rows(call)
    if not any(row.takes(detection) for row in rows):
        kind = f"{detection.component_class}{' for inpainting' if detection.variant == 'inpainting' else ''}"
        taken = dict.fromkeys(f"{row.component}{' for inpainting' if row.inpaints else ''}" for row in rows)
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} is a {kind}, which does not serve {call.task} of {call.spec.id}; "
            f"it takes {' or '.join(taken)}.",
            field=_FIELD,
            details={"evidence": list(detection.evidence)},
        )


def _check_fields(inspected: Inspected[ControlNetSpec], path: str) -> None:
    """Refuse a window without steps, and a mode that the control does not have."""
    control, detection = inspected.spec, inspected.detection
    if control.start >= control.end:
        raise ParameterOutOfRange(
            f"{path}.start must be less than its end; {control.start:g} and {control.end:g} were sent.", field=_FIELD
        )
    modes = modes_of(detection)
    if control.mode is not None and not modes:
        raise UnknownParameter(
            f"{path}.mode is for a union ControlNet, which {control.model} is not; leave it out.", field=_FIELD
        )
    if modes and _mode(control, detection) is None:
        sent = f"{control.mode!r} was sent" if control.mode else "none was sent"
        raise ParameterOutOfRange(f"{path}.mode must be one of {', '.join(modes)}; {sent}.", field=_FIELD)


def _common_row(controls: Sequence[ControlNetSpec], detections: Sequence[Detection], call: ModelCall) -> Controlled:
    """Return the one row that takes all controls. Raises IncompatibleAdapter if their kinds share no class."""
    row = next((row for row in controlled_rows(call) if all(row.takes(detection) for detection in detections)), None)
    if row is None:
        kinds = " and ".join(dict.fromkeys(str(detection.component_class) for detection in detections))
        raise IncompatibleAdapter(
            f"{_FIELD}: {kinds} cannot be used together; send controls of one kind for {call.task} of {call.spec.id}.",
            field=_FIELD,
        )
    sources = {(control.model, control.weight_name) for control in controls}
    if len(controls) > 1 and (row.several == "one" or (row.several == "same" and len(sources) > 1)):
        limit = "one control" if row.several == "one" else "one ControlNet, which may be given several images"
        raise ParameterOutOfRange(
            f"{_FIELD}: {call.task} of {call.spec.id} takes {limit}; {len(controls)} were sent.", field=_FIELD
        )
    return row


def _check_together(controls: Sequence[ControlNetSpec], row: Controlled) -> None:
    """Refuse a start or end that the class cannot keep to."""
    call = control_call(row.pipeline)
    for index, control in enumerate(controls):
        for name, parameter, usual in (("start", call.start, 0.0), ("end", call.end, 1.0)):
            if getattr(control, name) != usual and parameter is None:
                raise UnknownParameter(
                    f"{_FIELD}[{index}].{name} is not taken by {row.pipeline}, which follows its controls in all "
                    "steps; leave it out.",
                    field=_FIELD,
                )
    if call.end is not None and call.start is None and len({control.end for control in controls}) > 1:
        raise ParameterOutOfRange(f"{_FIELD}: end must be the same for all controls of {row.pipeline}.", field=_FIELD)


def _check_parameters(request: GenerationRequest, row: Controlled) -> None:
    """Refuse a pipeline's own parameters that the controls set."""
    sent = {*request.params, *(name for name in ("control_image", "control_images") if getattr(request, name))}
    for name in sorted(sent & {*control_call(row.pipeline), "control_image", "control_images"} - {"image"}):
        raise UnknownParameter(f"{name} is told by {_FIELD}: send image, scale, start, end and mode there.", field=name)


def _plain_defaults(row: Controlled) -> dict[str, JsonValue]:
    """Return the defaults of the class without controls where the other's differ, such as strength."""
    plain, controlled = call_parameters(row.plain) or {}, call_parameters(row.pipeline) or {}
    return {
        name: parameter.default
        for name, parameter in plain.items()
        if name in controlled and parameter.default not in (None, controlled[name].default) and name in BOUNDS
    }


def _mode(control: ControlNetSpec, detection: Detection) -> int | None:
    """Return a union ControlNet's number for the kind of image: as sent, else as the preprocessing makes it."""
    modes = modes_of(detection)
    mode = control.mode or control.preprocess
    return modes.index(mode) if mode in modes else None


def _image(request: GenerationRequest, index: int, multiple: int, reader: MediaReader) -> Raster:
    control = request.adapters_of(ControlNetSpec)[index]
    text = control.image or request.image or next(iter(request.images), None)
    if text is None:
        raise InvalidRequest(
            f"{_FIELD}[{index}].image is missing: send the image to follow as base64, data: URI or https URL.",
            field=_FIELD,
        )
    image = reader.control(text, _FIELD) if control.image else reader.image(text, _FIELD)
    if control.image is None and request.outpaint is not None:  # the generated image is larger than the one sent
        image = enlarge(image, request.outpaint, multiple).image
    return reader.take(image, _FIELD)


def _check_sides(request: GenerationRequest, multiple: int) -> None:
    """Refuse a size that the model takes and its control does not."""
    for name in ("width", "height"):
        side = request.params.get(name)
        if isinstance(side, int) and side % multiple:
            raise ParameterOutOfRange(
                f"{name} must be a multiple of {multiple} with this control, and is {side}; "
                f"send {max(1, round(side / multiple)) * multiple}.",
                field=name,
            )


def _at_proportions(image: Raster, params: Mapping[str, JsonValue], bounds: SizeBounds) -> dict[str, JsonValue]:
    """Return the size with the usual number of pixels, at the proportions of `image`."""
    width, height = params.get("width"), params.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        return {}
    scale = math.sqrt(width * height / (image.width * image.height))
    new_width, new_height = size_within(round(image.width * scale), round(image.height * scale), bounds)
    return {"width": new_width, "height": new_height}
