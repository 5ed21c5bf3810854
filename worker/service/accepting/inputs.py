"""The images and videos of a request: assigned to parameters, read within limits, fitted to the generated size."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.inputs import FIELDS, assign
from worker.catalog.interface.sizes import (
    FRAME_COUNTS,
    default_fps,
    size_before,
    size_bounds,
    size_within,
)
from worker.core.errors import InvalidRequest, ParameterOutOfRange
from worker.core.image import Raster
from worker.core.job import Media
from worker.core.model import Task
from worker.core.pipeline import Slot
from worker.core.request import MAX_IMAGES, GenerationRequest
from worker.media.canvas import enlarge
from worker.media.images import fit
from worker.media.keeping import kept_frames
from worker.media.video import Video
from worker.service.accepting.masks import MaskReport, Pair, is_mask, with_masks
from worker.service.accepting.media_reader import MediaReader

# The bounds of diffusers' image processor for FLUX.2 on a reference; Z-Image-Omni has them too.
REFERENCE_SIDE, REFERENCE_ASPECT = 64, 8
# The field that decides the size when several are sent.
_ANCHORS = ("image", "images", "video", "control_image", "control_images", "mask_image")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A request's media for one pipeline, and the parameters that follow from them."""

    media: tuple[Media, ...]
    params: dict[str, JsonValue]
    fps: float | None = None  # of the video that was sent
    frames: int | None = None  # of that video that are wanted
    enlarged: bool = False  # the model's own upscaler brings the images to the size that comes back
    mask: MaskReport = field(default_factory=MaskReport)


def sent_fields(request: GenerationRequest, model: Model) -> tuple[str, ...]:
    """List the media fields that a request holds, also those by a pipeline's own name."""
    fields = [name for name in model.media_fields if field_value(request, name) is not None]
    return tuple(fields if request.outpaint is None else [*fields, "mask_image"])  # which the margins imply


def check_outpaint(request: GenerationRequest, model: Model) -> None:
    """Raise InvalidRequest for margins that the model cannot fill, or that have no one image to lie around."""
    margins = request.outpaint
    if margins is None:
        return
    if Task.INPAINTING not in model.tasks or request.task not in (None, Task.INPAINTING):
        reason = f"a parameter of inpainting, which {request.task or model.spec.id} is not for"
    elif request.mask_image is not None:
        reason = "a mask by itself; send it or mask_image"
    elif request.image is None:
        reason = "the room around image; send image with it"
    elif not any(margins.model_dump().values()):
        reason = "pixels beyond a border; send left, top, right or bottom above 0"
    else:
        return
    raise InvalidRequest(f"outpaint is {reason}.", field="outpaint")


def without_media(params: Mapping[str, JsonValue], model: Model) -> dict[str, JsonValue]:
    """Return the parameters of a request that are no images or videos."""
    return {name: value for name, value in params.items() if name not in model.media_fields}


def check_fields(call: ModelCall, sent: Collection[str]) -> None:
    """Raise InvalidRequest, naming the field, for media that the call does not take or does not have."""
    faults, task = call.media_faults(sent), call.task
    for name in faults.untaken:
        raise InvalidRequest(f"{name} is not a field of {task}; leave it out or choose another task.", field=name)
    for names in faults.crowded:
        raise ParameterOutOfRange(
            f"{names[0]} takes one image for this model; send {' or '.join(names)}.", field=names[0]
        )
    for name in faults.missing:
        raise InvalidRequest(f"{name} is required for {task}; send it as base64, data: URI or https URL.", field=name)


def read_inputs(
    request: GenerationRequest,
    sent: Collection[str],
    call: ModelCall,
    params: Mapping[str, JsonValue],
    reader: MediaReader,
    scale: int | None = None,
) -> Inputs:
    """Read sent media and fit it to the generated size. Raises InvalidImage and others, naming the field.

    `scale` is that of the model's own upscaler, where it may follow.
    """
    slots = {slot.parameter: slot for slot in call.slots}
    pairs: list[Pair] = []
    fps: float | None = None
    canvas = _canvas(request, size_bounds(call.model).multiple, reader)
    for parameter, fields in assign(slots.values(), sent).items():
        slot = slots[parameter]
        image = canvas.get(fields[0])
        video = Video((reader.take(image, fields[0]),)) if image else _read(request, slot, fields, reader)
        fps = fps or video.fps
        _check_controls(slot, len(video.frames), fields[0], call)
        pairs.append((slot, Media(parameter, video.frames, slot.form, fields[0])))
    is_sized = bool(request.params.keys() & {"width", "height"})
    if not pairs:
        effective, enlarged = _before(dict(params), scale, call, is_named=is_sized, exactly=is_sized)
        return Inputs((), effective, enlarged=enlarged)
    pairs, mask = with_masks(pairs, min(_sources(pairs), key=_rank, default=None), reader.orientations)
    if canvas and call.takes("strength") and "strength" not in request.params:
        params = {**params, "strength": 1.0}  # beyond the border there is nothing to keep
    is_named = is_sized or any(slot.fitted for slot, _ in pairs)
    effective, enlarged = _before(
        _sized(pairs, call, params, is_sized), scale, call, is_named=is_named, exactly=is_sized
    )
    effective = _with_area(effective, call)
    has_count = any(name in request.params for name in FRAME_COUNTS)
    pairs, effective, frames = _in_step(pairs, call, effective, has_count)
    media = tuple(_fitted(pairs, effective, call.task, reader))
    return Inputs(media, effective, fps, frames, enlarged, mask)


def _canvas(request: GenerationRequest, multiple: int, reader: MediaReader) -> dict[str, Raster]:
    """Return the image enlarged by the margins of `outpaint`, and its mask; {} without margins."""
    if request.outpaint is None or request.image is None:
        return {}
    canvas = enlarge(reader.image(request.image, "image"), request.outpaint, multiple)
    return {"image": canvas.image, "mask_image": canvas.mask}


def field_value(request: GenerationRequest, name: str) -> JsonValue:
    """Return what a request holds in a media field; None for nothing."""
    value = getattr(request, name) if name in FIELDS else request.params.get(name)
    return ([*value] or None) if isinstance(value, tuple | list) else value


def _read(request: GenerationRequest, slot: Slot, fields: Iterable[str], reader: MediaReader) -> Video:
    images: list[Raster] = []
    for name in fields:
        value = field_value(request, name)
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ParameterOutOfRange(f"{name} must be a text or a list of texts; something else was sent.", field=name)
        words = [str(text) for text in texts]
        if "video" in name:
            return reader.video(words, name, alpha=is_mask(slot))
        if len(words) > (MAX_IMAGES if slot.several else 1):
            fix = f"at most {MAX_IMAGES} images" if slot.several else "one image"
            raise ParameterOutOfRange(f"{name} takes {fix} for this model; {len(words)} were sent.", field=name)
        for text in words:
            alpha = slot.alpha or is_mask(slot)
            image = reader.control(text, name) if _is_control(slot) else reader.image(text, name, alpha=alpha)
            images.append(reader.take(image, name))
    return Video(tuple(images))


def _check_controls(slot: Slot, count: int, name: str, call: ModelCall) -> None:
    """Refuse another number of control images than the model has ControlNets, where it holds several."""
    needed = call.detection.controlnets
    if slot.form == "controls" and needed > 1 and count != needed:
        raise ParameterOutOfRange(
            f"{name} takes one image for each of the model's {needed} ControlNets; {count} came: send {needed}.",
            field=name,
        )


def _is_control(slot: Slot) -> bool:
    return slot.fields[:1] in (("control_image",), ("control_images",))


def _sized(pairs: list[Pair], call: ModelCall, params: Mapping[str, JsonValue], is_sized: bool) -> dict[str, JsonValue]:
    """Return `params` with the generated size: as asked for, else the image's; none if the class decides."""
    effective, task = dict(params), call.task
    fitted = [media for slot, media in pairs if slot.fitted]
    anchor = min(fitted, key=_rank, default=None)
    chooses_itself = task is Task.IMAGE_EDITING or (task is Task.UPSCALING and call.takes("width"))
    if chooses_itself and not is_sized:
        # These pipelines choose their own working size from the image's.
        return {name: value for name, value in effective.items() if name not in ("width", "height")}
    width, height = effective.get("width"), effective.get("height")
    if anchor is not None and not (is_sized and isinstance(width, int) and isinstance(height, int)):
        image = anchor.images[0]
        bounds = size_bounds(call.model)
        if task is Task.UPSCALING:  # upscaling is for small images
            bounds = replace(bounds, minimum=bounds.multiple)
        size = size_within(image.width, image.height, bounds, _working_pixels(call))
        effective["width"], effective["height"] = size
    return effective


def _before(
    params: dict[str, JsonValue], scale: int | None, call: ModelCall, *, is_named: bool, exactly: bool
) -> tuple[dict[str, JsonValue], bool]:
    """Return `params` with the size before the model's own upscaler, and whether that is used.

    The model's own size is enlarged. A size that a request names, or that an image has, is what comes back: the model
    draws it alone where the upscaler would have to begin below the model's own, or cannot reach it `exactly`.
    """
    width, height = params.get("width"), params.get("height")
    if scale is None or not (isinstance(width, int) and isinstance(height, int)):
        return params, False
    if not is_named:
        return params, True
    before = size_before(width, height, scale, size_bounds(call.model))
    if before is None or (exactly and before != (width / scale, height / scale)):
        return params, False
    return params | {"width": before[0], "height": before[1]}, True


def _with_area(params: dict[str, JsonValue], call: ModelCall) -> dict[str, JsonValue]:
    """Add `max_area` where a class takes it: FLUX.1 Kontext brings every size to it, also one that was asked for."""
    width, height = params.get("width"), params.get("height")
    if call.takes("max_area") and isinstance(width, int) and isinstance(height, int):
        return {"max_area": width * height} | params
    return params


def _working_pixels(call: ModelCall) -> float | None:
    """Return the pixels of a video's frame unless more are asked for, as the family was trained; None for images."""
    row, defaults = call.architecture, call.spec.defaults
    if row is None or not call.makes_video:
        return None
    width, height = defaults.get("width"), defaults.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        width, height = row.defaults.get("width"), row.defaults.get("height")
    is_sized = isinstance(width, int) and isinstance(height, int)
    return float(str(width)) * float(str(height)) if is_sized else float(row.native_size**2)


def _sources(pairs: list[Pair]) -> list[Media]:
    """Return the media that a mask may belong to: those that are fitted as it is, if there are any."""
    images = [(slot, media) for slot, media in pairs if not is_mask(slot)]
    return [media for slot, media in images if slot.fitted] or [media for _, media in images]


def _rank(media: Media) -> int:
    return _ANCHORS.index(media.field) if media.field in _ANCHORS else len(_ANCHORS)


def _in_step(
    pairs: list[Pair], call: ModelCall, params: dict[str, JsonValue], has_count: bool
) -> tuple[list[Pair], dict[str, JsonValue], int | None]:
    """Pad or cut each video to a number of frames that the class can generate, and set `num_frames` if possible.

    Returns media, parameters and the wanted number of frames. `has_count` is True if the request names a number.
    """
    name = next((name for name in FRAME_COUNTS[:2] if call.takes(name)), None)
    max_frames = _most_frames(params.get(name) if name and has_count else None, call)
    paced = [(slot, _paced(slot, media, call, max_frames)) for slot, media in pairs]
    length = next((len(media.images[:max_frames]) for slot, media in pairs if _sets_length(slot, call)), None)
    if name and length is not None and not has_count and not call.row.lengthens:
        params = params | {name: length}
    frames = next((len(media.images) for slot, media in paced if slot.fields[:1] == ("video",)), 1)
    return [(slot, _for_every_frame(slot, media, frames)) for slot, media in paced], params, length


def _most_frames(wanted: JsonValue, call: ModelCall) -> int | None:
    """Return the number of frames of a video to keep if `wanted` are asked for; None is all."""
    return wanted if isinstance(wanted, int) and not call.row.lengthens else None


def _sets_length(slot: Slot, call: ModelCall) -> bool:
    """True if the generated video has as many frames as the media in `slot`."""
    every_frame = slot.parameter == "conditioning_frames" and not call.takes("controlnet_frame_indices")
    return every_frame or slot.fields[:1] == ("video",)


def _paced(slot: Slot, media: Media, call: ModelCall, max_frames: int | None) -> Media:
    """Cut a video to `max_frames` frames, and repeat its last up to the next number that the class can generate."""
    sets_length, is_video = _sets_length(slot, call), slot.moving and "video" in media.field
    if not sets_length and not is_video:
        return media
    if not sets_length and slot.form == "condition":
        return replace(media, images=media.images[: call.row.frame_grid.within(len(media.images))])
    frames = media.images[:max_frames]
    if sets_length and slot.parameter == "conditioning_frames" and max_frames is not None and len(frames) < max_frames:
        raise InvalidRequest(
            f"{media.field} holds {len(frames)} frames and num_frames is {max_frames}; send one for each.",
            field=media.field,
        )
    missing = call.row.frame_grid.covering(len(frames)) - len(frames)
    return replace(media, images=frames + frames[-1:] * missing)


def _for_every_frame(slot: Slot, media: Media, length: int) -> Media:
    """Repeat a single mask for all frames of a video."""
    if slot.fields == ("mask_image",) and slot.several and len(media.images) == 1:
        return replace(media, images=media.images * length)
    return media


def _fitted(pairs: list[Pair], params: Mapping[str, JsonValue], task: Task, reader: MediaReader) -> Iterable[Media]:
    """Yield the media fitted to the generated size; references and examples as they came."""
    width, height = _common_size(pairs, params)
    # An editing model that takes several images sees them all at the size asked for, as it does with one.
    for slot, media in pairs:
        fits = slot.fitted or (task is Task.IMAGE_EDITING and media.field == "image" and "width" in params)
        fits &= reader.fits
        images = media.images
        if fits:
            images = tuple(fit(image, width, height) for image in images)
        elif slot.bounded and reader.fits:
            images = tuple(map(_bounded, images))
        waiting = [
            reader.kept(new) if new is old or not fits else new for old, new in zip(media.images, images, strict=True)
        ]
        yield replace(media, images=kept_frames(waiting, reader.room))


def _common_size(pairs: list[Pair], params: Mapping[str, JsonValue]) -> tuple[int, int]:
    """Return one width and height for image and mask, also if the pipeline chooses the size."""
    width, height = params.get("width"), params.get("height")
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    first = min((media for slot, media in pairs if slot.fitted), key=_rank, default=None)
    return (first.images[0].width, first.images[0].height) if first else (0, 0)


def _bounded(image: Raster) -> Raster:
    """Enlarge a reference that is smaller than its pipeline takes, and cut one that is longer."""
    width = min(image.width, REFERENCE_ASPECT * image.height)
    height = min(image.height, REFERENCE_ASPECT * image.width)
    scale = max(1.0, REFERENCE_SIDE / min(width, height))
    return fit(image, round(width * scale), round(height * scale))


def on_the_frame_grid(inputs: Inputs, call: ModelCall) -> tuple[dict[str, JsonValue], int | None]:
    """Return the parameters with a number of frames that the class can generate, and the number that is wanted."""
    params = inputs.params
    if call.row.lengthens:
        return params, None
    name = next((name for name in FRAME_COUNTS if isinstance(params.get(name), int)), "")
    wanted = params.get(name)
    if not isinstance(wanted, int):
        return params, inputs.frames
    return params | {name: call.row.frame_grid.covering(wanted)}, wanted


def frame_rate(inputs: Inputs, params: Mapping[str, JsonValue], call: ModelCall) -> float:
    """Return the frames a second of the generated video: as asked for, else of the sent video, else the family's."""
    wanted = params.get("fps", params.get("frame_rate"))
    if isinstance(wanted, int | float) and wanted > 0:
        return float(wanted)
    return inputs.fps or default_fps(call)
