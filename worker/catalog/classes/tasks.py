"""The tasks of a diffusers class, and the media that each takes on it."""

from collections.abc import Collection
from dataclasses import dataclass

from worker.catalog.classes.inputs import FIELDS, VIDEO_TASKS, assign, default_slots, missing_fields, slots_of
from worker.catalog.classes.modular import modular_makes_videos, modular_workflows, parts_needed
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.pipelines.names import named_task
from worker.catalog.pipelines.table import pipeline_row
from worker.core.model import Task
from worker.core.pipeline import Slot

# The image comes from the caller in all others, and so does its size.
FROM_TEXT = frozenset({Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO})

_I2V, _V2V = Task.IMAGE_TO_VIDEO, Task.VIDEO_TO_VIDEO


def class_tasks(class_name: str) -> tuple[Task, ...]:
    """Return the tasks of a class: by its name, corrected by the media that its call takes and needs."""
    row = pipeline_row(class_name)
    if row.tasks:
        return row.tasks
    if workflows := modular_workflows(class_name):
        return tuple(dict.fromkeys(_of_workflow(inputs, class_name) for inputs in workflows))
    by_name = named_task(class_name)
    if modular_makes_videos(class_name) and by_name is Task.TEXT_TO_IMAGE:
        by_name = Task.TEXT_TO_VIDEO
    return _by_media(class_name, by_name)


def _by_media(class_name: str, by_name: Task) -> tuple[Task, ...]:
    slots = slots_of(class_name)
    if slots is None or by_name not in FROM_TEXT:
        return (by_name,)
    fields = {slot.fields[0]: slot.required for slot in slots if slot.fields}
    video = makes_video(class_name, by_name)
    tasks = [by_name]
    if "image" in fields or "images" in fields:
        tasks.append(_I2V if video else _from_image(class_name))
    if "video" in fields and video:
        tasks.append(_V2V)
    return tuple(tasks[1:]) if any(slot.required for slot in slots) and len(tasks) > 1 else tuple(tasks)


def _of_workflow(inputs: frozenset[str], class_name: str) -> Task:
    """Return the task of one workflow of a modular class, by the inputs that it goes by."""
    if modular_makes_videos(class_name):
        return _V2V if "video" in inputs else _I2V if inputs & {"image", "last_image"} else Task.TEXT_TO_VIDEO
    if "mask_image" in inputs:
        return Task.INPAINTING
    if "image" not in inputs:
        return Task.TEXT_TO_IMAGE
    return named_task(class_name) if named_task(class_name) not in FROM_TEXT else _from_image(class_name)


def tasks_with(class_name: str, parts: Collection[str]) -> tuple[Task, ...]:
    """Return those tasks of a modular class for which a repository has the parts."""
    tasks = class_tasks(class_name)
    lacking = {
        task
        for task in tasks
        if not parts_needed(class_name, frozenset(missing_fields(media_slots(class_name, task), task, ()))) <= {*parts}
    }
    return tuple(task for task in tasks if task not in lacking)


def _from_image(class_name: str) -> Task:
    """Return image editing for a class with a prompt and no strength, else image-to-image."""
    signature = call_parameters(class_name) or {}
    return Task.IMAGE_EDITING if "prompt" in signature and "strength" not in signature else Task.IMAGE_TO_IMAGE


def makes_video(class_name: str | None, task: Task) -> bool:
    """True if a video comes back."""
    return task in VIDEO_TASKS or pipeline_row(class_name).is_video or modular_makes_videos(class_name)


def media_slots(class_name: str | None, task: Task) -> tuple[Slot, ...]:
    """Return the slots of `task` on this class, from its signature where there is one."""
    slots = slots_of(class_name)
    return default_slots(task) if slots is None else slots


@dataclass(frozen=True, slots=True)
class MediaFaults:
    """The faults of a request's media fields: not taken, two for the place of one, and missing."""

    untaken: tuple[str, ...] = ()
    crowded: tuple[tuple[str, ...], ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.untaken or self.crowded or self.missing)


def media_faults(slots: Collection[Slot], task: Task, sent: Collection[str]) -> MediaFaults:
    """Return the faults for which `task` would refuse the media fields `sent`, on a class with these slots."""
    assigned = assign(slots, sent)
    taken = {field for fields in assigned.values() for field in fields}
    single = {slot.parameter for slot in slots if not slot.several}
    return MediaFaults(
        tuple(name for name in sent if name not in taken or (task in FROM_TEXT and name in FIELDS)),
        tuple(fields for parameter, fields in assigned.items() if parameter in single and len(fields) > 1),
        () if task in FROM_TEXT else missing_fields(slots, task, sent),
    )
