"""Media inputs: the images and videos that a pipeline's call takes, and in which form.

The purpose of a parameter is read from its name in the signature. For most classes that is all; the exceptions of a
class stand in its row (`worker.catalog.pipelines`).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from worker.catalog.classes.modular import UNSERVED, is_modular, modular_makes_videos
from worker.catalog.classes.signatures import CallParameter, call_parameters
from worker.catalog.pipelines.table import pipeline_row
from worker.core.model import Task
from worker.core.pipeline import Slot

# The request's own fields for media, in the order in which a caller would name them.
FIELDS = ("image", "images", "mask_image", "control_image", "control_images", "video")
VIDEO_TASKS = frozenset({Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO, Task.VIDEO_TO_VIDEO})


_IMAGE, _CONTROL = ("image", "images"), ("control_image", "control_images")
# The media that a parameter of this name takes, in any pipeline.
_NAMED: Mapping[str, Slot] = {
    slot.parameter: slot
    for slot in (
        Slot("image", _IMAGE),
        Slot("images", _IMAGE, "images"),
        Slot("input_images", _IMAGE, "batch", fitted=False),
        Slot("mask_image", ("mask_image",), "mask"),
        Slot("mask", ("mask_image",), "mask"),
        Slot("control_mask", ("mask_image",), "mask"),
        Slot("control_image", _CONTROL, "controls"),
        Slot("condtioning_image", _CONTROL),  # spelt so in BlipDiffusion
        Slot("conditioning_image", _CONTROL),
        Slot("conditioning_frames", ("control_images", "video"), "images"),
        Slot("controls", ("video", "control_images"), "images"),
        Slot("video", ("video",), "images"),
        Slot("control_video", ("video",), "images"),
        Slot("pose_video", ("video",), "images"),
        Slot("driving_video", ("video",), "images", fitted=False),
        Slot("face_video", (), "images", fitted=False),
        Slot("background_video", (), "images"),
        Slot("mask_video", (), "images"),
        Slot("conditions", ("image", "images", "video"), "condition"),
        Slot("reference_conditions", ("video", "image", "images"), "condition"),
        Slot("last_image"),
        Slot("cond_image", _IMAGE),
        Slot("source_image", _IMAGE),
        Slot("original_image", fitted=False),
        Slot("ref_image", _IMAGE, fitted=False),
        Slot("reference_image", _IMAGE, fitted=False),
        Slot("reference_images", _IMAGE, "images", fitted=False),
        Slot("image_reference", (), "images", fitted=False),
        Slot("example_image", fitted=False),
        Slot("gligen_images", (), "images", fitted=False),
        Slot("gligen_inpaint_image"),
        Slot("text_images", (), "images", fitted=False),
    )
}
# A new pipeline's parameter that no row above names, where its annotation names images.
_MEDIA_NAME = re.compile(r"(\w+_)?(image|images|video|mask)(_\d)?")
_MEDIA_TYPE = re.compile(r"Image|PipelineImageInput")
_NEVER = re.compile(r"(negative_)?ip_adapter_.*|\w*latents|user_mask")


@lru_cache(maxsize=512)
def slots_of(class_name: str | None) -> tuple[Slot, ...] | None:
    """Return the parameters of this class's call that take media, in written order.

    None where the installed diffusers does not have the class.
    """
    signature = call_parameters(class_name) if class_name else None
    if class_name is None or signature is None:
        return None
    row = pipeline_row(class_name)
    row_slots = {slot.parameter: slot for slot in row.slots}
    unused = row.unused | (UNSERVED if is_modular(class_name) else frozenset())
    editing = is_modular(class_name) and "strength" not in signature and not modular_makes_videos(class_name)
    candidates = [
        row_slots.pop(name, None) or _slot(parameter, editing)
        for name, parameter in signature.items()
        if name not in unused
    ]
    slots = [slot for slot in (*candidates, *row_slots.values()) if slot is not None]
    return tuple(replace(slot, required=slot.required or _is_required(signature, slot)) for slot in slots)


def _slot(parameter: CallParameter, editing: bool) -> Slot | None:
    """Return the slot of one parameter. An `editing` class, one of blocks without a strength, takes a list as one."""
    name, annotation = parameter.name, parameter.annotation
    if _NEVER.fullmatch(name) or parameter.schema == {"type": "integer"}:  # `frames` of Sana is a count
        return None
    if annotation == "Tensor":  # made by an earlier block
        return None
    if name == "image" and editing and annotation == "Image | list":
        return Slot("image", _IMAGE, "images", fitted=False)
    if name in _NAMED:
        return _NAMED[name]
    if not (_MEDIA_NAME.fullmatch(name) and _MEDIA_TYPE.search(annotation)):
        return None
    several = name.endswith(("images", "video")) or annotation.startswith(("list[", "List["))
    return Slot(name, form="images" if several else "mask" if "mask" in name else "image", fitted=False)


def _is_required(signature: Mapping[str, CallParameter], slot: Slot) -> bool:
    return slot.parameter in signature and signature[slot.parameter].required


def assign(slots: Iterable[Slot], sent: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the sent fields by the parameter that they go into. A field that no slot takes is left out.

    Every slot takes the field of its own name, then its first choice; a field still left goes to an empty slot.
    """
    slots = list(slots)
    assigned: dict[str, tuple[str, ...]] = {}
    remaining = list(dict.fromkeys(sent))

    def give(slot: Slot, names: Iterable[str]) -> None:
        for name in names:
            # image and images are one list, and so are control_image and control_images
            group = [other for other in remaining if other in (name, f"{name}s", name.removesuffix("s"))]
            if slot.parameter not in assigned and group:
                assigned[slot.parameter] = tuple(sorted(group, key=len))
                remaining[:] = [other for other in remaining if other not in group]

    for choose in (lambda slot: (slot.parameter,), lambda slot: slot.fields[:2], lambda slot: slot.fields):
        for slot in sorted(slots, key=lambda item: item.parameter not in FIELDS):
            give(slot, choose(slot))
    return assigned


def missing_fields(slots: Iterable[Slot], task: Task, sent: Collection[str]) -> tuple[str, ...]:
    """Return the fields that `task` still needs on a class with these slots, by the names that a caller would use."""
    slots = list(slots)
    assigned = assign(slots, sent)
    missing = [_name(slot) for slot in slots if slot.required and slot.parameter not in assigned]
    wanted = [*_BY_TASK.get(task, ())]
    if task is Task.CONTROLNET:  # a class that also starts from an image needs it too, and its mask
        wanted += [name for name in ("image", "mask_image") if any(slot.fields[:1] == (name,) for slot in slots)]
    for field in wanted:
        holders = [slot for slot in slots if field in slot.fields]
        if holders and not any(slot.parameter in assigned or _name(slot) in missing for slot in holders):
            missing.append(field)
    return tuple(dict.fromkeys(missing))


def _name(slot: Slot) -> str:
    return slot.fields[0] if slot.fields else slot.parameter


_BY_TASK: Mapping[Task, tuple[str, ...]] = {
    Task.IMAGE_TO_IMAGE: ("image",),
    Task.IMAGE_EDITING: ("image",),
    Task.UPSCALING: ("image",),
    Task.INPAINTING: ("image", "mask_image"),
    Task.CONTROLNET: ("control_image",),
    Task.IMAGE_TO_VIDEO: ("image",),
    Task.VIDEO_TO_VIDEO: ("video",),
}


def default_slots(task: Task) -> tuple[Slot, ...]:
    """Return the slots of `task` where no signature can be read."""
    return tuple(_NAMED[name] for name in _BY_TASK.get(task, ()))
