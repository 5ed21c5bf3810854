"""The pictures and videos of a request: which parameter each is for, read within limits, brought to the size drawn."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from pydantic import JsonValue

from worker.catalog.classes.inputs import FIELDS, assign
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.classes.tasks import draws_video, media_faults, media_slots
from worker.catalog.interface.sizes import (
    FRAME_COUNTS,
    size_bounds,
    size_within,
)
from worker.catalog.interface.tasks import architecture_of, media_fields, pipeline_for, tasks_of
from worker.catalog.pipelines.table import pipeline_row
from worker.core.errors import InvalidRequest, ParameterOutOfRange
from worker.core.image import Raster
from worker.core.job import Media
from worker.core.model import Detection, ModelSpec, Task
from worker.core.pipeline import Slot
from worker.core.request import MAX_PICTURES, GenerationRequest
from worker.media.canvas import enlarge
from worker.media.images import fit, read_image, to_mask
from worker.media.video import Clip, read_video

MAX_PIXELS = 2**26  # of all pictures together: 200 MB once decoded
Fetch = Callable[[str, int], bytes]
# What diffusers' image processor for FLUX.2 asks of a reference, which Z-Image-Omni has too.
REFERENCE_SIDE, REFERENCE_ASPECT = 64, 8
# What decides the size when several are sent.
_ANCHORS = ("image", "images", "video", "control_image", "control_images", "mask_image")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A request's media for one pipeline, and the parameters as they follow from them."""

    media: tuple[Media, ...]
    params: dict[str, JsonValue]
    fps: float | None = None  # of the video that was sent
    frames: int | None = None  # of it that are wanted


def sent_fields(request: GenerationRequest, spec: ModelSpec, detection: Detection) -> tuple[str, ...]:
    """The media fields that a request holds, also those by a pipeline's own name."""
    found = [name for name in media_fields(spec, detection) if _value(request, name) is not None]
    return tuple(found if request.outpaint is None else [*found, "mask_image"])  # which the margins make


def check_outpaint(request: GenerationRequest, spec: ModelSpec, detection: Detection) -> None:
    """Raise InvalidRequest for margins that the model cannot fill, or that have no one picture to lie around."""
    margins = request.outpaint
    if margins is None:
        return
    if Task.INPAINTING not in tasks_of(spec, detection) or request.task not in (None, Task.INPAINTING):
        reason = f"a parameter of inpainting, which {request.task or spec.id} is not for"
    elif request.mask_image is not None:
        reason = "a mask by itself; send it or mask_image"
    elif request.image is None:
        reason = "the room around image; send image with it"
    elif not any(margins.model_dump().values()):
        reason = "pixels beyond a border; send left, top, right or bottom above 0"
    else:
        return
    raise InvalidRequest(f"outpaint is {reason}.", field="outpaint")


def without_media(params: Mapping[str, JsonValue], spec: ModelSpec, detection: Detection) -> dict[str, JsonValue]:
    """The parameters of a request that are no pictures."""
    media = media_fields(spec, detection)
    return {name: value for name, value in params.items() if name not in media}


def check_fields(spec: ModelSpec, detection: Detection, task: Task, sent: Collection[str]) -> None:
    """Raise InvalidRequest, naming the field, for media that `task` does not take or does not have."""
    faults = media_faults(pipeline_for(spec, detection, task), task, sent)
    for name in faults.untaken:
        raise InvalidRequest(f"{name} is not a field of {task}; leave it out or choose another task.", field=name)
    for names in faults.crowded:
        raise ParameterOutOfRange(
            f"{names[0]} takes one picture for this model; send {' or '.join(names)}.", field=names[0]
        )
    for name in faults.missing:
        raise InvalidRequest(f"{name} is required for {task}; send it as base64, data: URI or https URL.", field=name)


def read_inputs(
    request: GenerationRequest,
    sent: Collection[str],
    spec: ModelSpec,
    detection: Detection,
    task: Task,
    params: Mapping[str, JsonValue],
    fetch: Fetch,
    budget: "Budget",
) -> Inputs:
    """Read what was sent and bring it to the size that is drawn. Raises InvalidImage and its kin, naming the field."""
    pipeline = pipeline_for(spec, detection, task) or ""
    slots = {slot.parameter: slot for slot in media_slots(pipeline, task)}
    found: list[tuple[Slot, Media]] = []
    fps: float | None = None
    made = _canvas(request, size_bounds(spec, detection).multiple, fetch)
    for parameter, fields in assign(slots.values(), sent).items():
        slot = slots[parameter]
        own = made.get(fields[0])
        clip = Clip((budget.take(own, fields[0]),)) if own else _read(request, slot, fields, fetch, budget)
        fps = fps or clip.fps
        found.append((slot, Media(parameter, clip.frames, slot.form, fields[0])))
    if not found:
        return Inputs((), dict(params))
    sized = bool(request.params.keys() & {"width", "height"})
    if made and "strength" in (call_parameters(pipeline) or {}) and "strength" not in request.params:
        params = {**params, "strength": 1.0}  # beyond the border there is nothing to keep
    effective = _sized(found, spec, detection, task, params, sized)
    asked = any(name in request.params for name in FRAME_COUNTS)
    found, effective, frames = _in_step(found, pipeline, effective, asked)
    return Inputs(tuple(_fitted(found, effective, task)), effective, fps, frames)


class Budget:
    """What all pictures of one request may hold together, those of its adapters too."""

    def __init__(self) -> None:
        self._pictures = self._pixels = 0

    def take(self, picture: Raster, field: str) -> Raster:
        """`picture`, counted. Raises ParameterOutOfRange, naming `field`, once it is too much."""
        self._pictures += 1
        self._pixels += picture.width * picture.height
        if self._pictures > MAX_PICTURES:
            raise ParameterOutOfRange(f"A request may hold at most {MAX_PICTURES} pictures; send fewer.", field=field)
        if self._pixels > MAX_PIXELS:
            raise ParameterOutOfRange(
                f"The pictures of a request may hold at most {MAX_PIXELS:,} pixels together; send smaller ones.",
                field=field,
            )
        return picture


def _canvas(request: GenerationRequest, multiple: int, fetch: Fetch) -> dict[str, Raster]:
    """What the margins of `outpaint` make of the picture: itself, enlarged, and its mask."""
    if request.outpaint is None or request.image is None:
        return {}
    canvas = enlarge(read_image(request.image, fetch, "image"), request.outpaint, multiple)
    return {"image": canvas.picture, "mask_image": canvas.mask}


def _value(request: GenerationRequest, name: str) -> JsonValue:
    value = getattr(request, name) if name in FIELDS else request.params.get(name)
    return ([*value] or None) if isinstance(value, tuple | list) else value


def _read(request: GenerationRequest, slot: Slot, fields: Iterable[str], fetch: Fetch, budget: Budget) -> Clip:
    pictures: list[Raster] = []
    for name in fields:
        value = _value(request, name)
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ParameterOutOfRange(f"{name} must be a text or a list of texts; something else was sent.", field=name)
        words = [str(text) for text in texts]
        if "video" in name:
            return read_video(words, fetch, name)
        if len(words) > (MAX_PICTURES if slot.several else 1):
            fix = f"at most {MAX_PICTURES} pictures" if slot.several else "one picture"
            raise ParameterOutOfRange(f"{name} takes {fix} for this model; {len(words)} were sent.", field=name)
        pictures += [budget.take(read_image(text, fetch, name, alpha=slot.alpha), name) for text in words]
    return Clip(tuple(pictures))


def _sized(
    found: list[tuple[Slot, Media]],
    spec: ModelSpec,
    detection: Detection,
    task: Task,
    params: Mapping[str, JsonValue],
    sized: bool,
) -> dict[str, JsonValue]:
    """`params` with the size that is drawn: as asked for, else the picture's; none where the class decides."""
    effective = dict(params)
    fitted = [media for slot, media in found if slot.fitted]
    anchor = min(fitted, key=_rank, default=None)
    chooses_itself = task is Task.IMAGE_EDITING or (task is Task.UPSCALING and _takes_size(spec, detection, task))
    if chooses_itself and not sized:
        # These pipelines choose their own working size from the picture's.
        return {name: value for name, value in effective.items() if name not in ("width", "height")}
    width, height = effective.get("width"), effective.get("height")
    if anchor is not None and not (sized and isinstance(width, int) and isinstance(height, int)):
        picture = anchor.pictures[0]
        bounds = size_bounds(spec, detection)
        if task is Task.UPSCALING:  # what is small is what it is for
            bounds = replace(bounds, minimum=bounds.multiple)
        effective["width"], effective["height"] = size_within(
            picture.width, picture.height, bounds, _working_pixels(spec, detection, task)
        )
    return _with_area(effective, pipeline_for(spec, detection, task) or "")


def _with_area(params: dict[str, JsonValue], pipeline: str) -> dict[str, JsonValue]:
    """FLUX.1 Kontext brings every size to its `max_area`, so a size that was asked for needs that too."""
    width, height = params.get("width"), params.get("height")
    if "max_area" in (call_parameters(pipeline) or {}) and isinstance(width, int) and isinstance(height, int):
        return {"max_area": width * height} | params
    return params


def _takes_size(spec: ModelSpec, detection: Detection, task: Task) -> bool:
    return "width" in (call_parameters(pipeline_for(spec, detection, task) or "") or {})


def _working_pixels(spec: ModelSpec, detection: Detection, task: Task) -> float | None:
    """How large a frame of a clip is, unless more is asked for: what the family was trained on."""
    row = architecture_of(spec, detection)
    if row is None or not draws_video(pipeline_for(spec, detection, task), task):
        return None
    width, height = spec.defaults.get("width"), spec.defaults.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        width, height = row.defaults.get("width"), row.defaults.get("height")
    known = isinstance(width, int) and isinstance(height, int)
    return float(str(width)) * float(str(height)) if known else float(row.native_size**2)


def _rank(media: Media) -> int:
    return _ANCHORS.index(media.field) if media.field in _ANCHORS else len(_ANCHORS)


def _in_step(
    found: list[tuple[Slot, Media]], pipeline: str, params: dict[str, JsonValue], asked: bool
) -> tuple[list[tuple[Slot, Media]], dict[str, JsonValue], int | None]:
    """Clips of as many frames as the class can draw, `num_frames` said where it takes that, and how many are wanted.

    A clip is cut to what is asked for, and its last frame stands still until the next number that can be drawn.
    """
    signature = call_parameters(pipeline) or {}
    row = pipeline_row(pipeline)
    name = next((name for name in FRAME_COUNTS[:2] if name in signature), None)
    wanted = params.get(name) if name and asked else None
    most = wanted if isinstance(wanted, int) and not row.lengthens else None
    paced: list[tuple[Slot, Media]] = []
    length = None
    for slot, media in found:
        sets_length = slot.fields[:1] == ("video",) or (
            slot.parameter == "conditioning_frames" and "controlnet_frame_indices" not in signature
        )
        if sets_length or (slot.moving and "video" in media.field and slot.form != "condition"):
            pictures = media.pictures[:most]
            if sets_length and length is None:
                length = len(pictures)
            if sets_length and slot.parameter == "conditioning_frames" and most is not None and len(pictures) < most:
                raise InvalidRequest(
                    f"{media.field} holds {len(pictures)} frames and num_frames is {most}; send one for each.",
                    field=media.field,
                )
            more = row.frame_grid.covering(len(pictures)) - len(pictures)
            media = replace(media, pictures=pictures + pictures[-1:] * more)
        elif slot.moving and "video" in media.field:
            media = replace(media, pictures=media.pictures[: row.frame_grid.within(len(media.pictures))])
        paced.append((slot, media))
    if name and length is not None and not asked and not row.lengthens:
        params = params | {name: length}
    clip = next((len(media.pictures) for slot, media in paced if slot.fields[:1] == ("video",)), 1)
    return [(slot, _for_every_frame(slot, media, clip)) for slot, media in paced], params, length


def _for_every_frame(slot: Slot, media: Media, length: int) -> Media:
    """One mask of a film is that of all its frames."""
    if slot.fields == ("mask_image",) and slot.several and len(media.pictures) == 1:
        return replace(media, pictures=media.pictures * length)
    return media


def _fitted(found: list[tuple[Slot, Media]], params: Mapping[str, JsonValue], task: Task) -> Iterable[Media]:
    """Every picture of the drawn one's size, masks as one channel; references and examples as they came."""
    width, height = params.get("width"), params.get("height")
    first = min((media for slot, media in found if slot.fitted), key=_rank, default=None)
    if not (isinstance(width, int) and isinstance(height, int)):
        # One size for picture and mask, also where the pipeline chooses which.
        width, height = (first.pictures[0].width, first.pictures[0].height) if first else (0, 0)
    # An editing model that takes several pictures sees them all at the size asked for, as it does with one.
    for slot, media in found:
        fits = slot.fitted or (task is Task.IMAGE_EDITING and media.field == "image" and "width" in params)
        pictures = media.pictures
        if fits:
            pictures = tuple(fit(picture, width, height) for picture in pictures)
        elif slot.bounded:
            pictures = tuple(_bounded(picture) for picture in pictures)
        if "mask" in slot.form or slot.fields == ("mask_image",) or slot.parameter == "mask_video":
            pictures = tuple(to_mask(picture) for picture in pictures)
        yield replace(media, pictures=pictures)


def _bounded(picture: Raster) -> Raster:
    """A reference enlarged where it is smaller than its pipeline takes, and cut where it is longer."""
    width = min(picture.width, REFERENCE_ASPECT * picture.height)
    height = min(picture.height, REFERENCE_ASPECT * picture.width)
    scale = max(1.0, REFERENCE_SIDE / min(width, height))
    return fit(picture, round(width * scale), round(height * scale))
