"""What a model can be asked for, and which diffusers class answers."""

from collections.abc import Collection

from worker.catalog import architectures
from worker.catalog.architectures import Architecture
from worker.catalog.classes.auto_pipelines import auto_pipelines
from worker.catalog.classes.inputs import FIELDS, assign, missing_fields
from worker.catalog.classes.signatures import needed_parts
from worker.catalog.classes.tasks import FROM_TEXT, class_tasks, media_faults, media_slots
from worker.core.model import Detection, Kind, ModelSpec, Task


def declared(spec: ModelSpec) -> Detection | None:
    """What the registry alone says a model is: enough to check a request before a byte is fetched, or None."""
    row = architecture_of(spec, None)
    if row is None:
        return None
    tasks = spec.tasks or tuple(row.pipelines)
    evidence = (f"models.yaml declares {spec.id} as {row.id}",)
    return Detection(Kind.PIPELINE, "declared", row.id, spec.pipeline, tasks, evidence=evidence)


def architecture_of(spec: ModelSpec, detection: Detection | None) -> Architecture | None:
    """The model's row of the architecture table: what the registry declares, else what was detected."""
    for name in (spec.architecture, detection.architecture if detection else None):
        row = next((row for row in architectures.ARCHITECTURES if row.id == name), None) if name else None
        if row is not None:
            return row
    return None


def pipeline_for(spec: ModelSpec, detection: Detection | None, task: Task) -> str | None:
    """The diffusers class that serves `task`. A class outside the family's row serves every task it is declared for."""
    row = architecture_of(spec, detection)
    own = spec.pipeline or (detection.pipeline if detection else None)
    if row is None:
        return auto_pipelines(own).get(task, own)
    if own is not None and own not in row.pipelines.values():
        return own
    return row.pipelines.get(task, own)


def tasks_of(spec: ModelSpec, detection: Detection | None) -> tuple[Task, ...]:
    """The tasks a model takes: declared, else what its class's signature shows, else detected or its family's."""
    if spec.tasks:
        return spec.tasks
    row = architecture_of(spec, detection)
    own = spec.pipeline or (detection.pipeline if detection else None)
    if own is not None and (row is None or own not in row.pipelines.values()):
        return class_tasks(own)
    known = (detection.tasks if detection else ()) or (tuple(row.pipelines) if row else ())
    if row is not None and detection is not None and detection.part_classes:  # a repository says which parts it has
        known = tuple(task for task in known if _has_parts(row.pipelines.get(task, own), own, detection)) or known
    if row is None or own is None:
        return known
    return (*known, *(task for task in class_tasks(own) if task not in known and task not in row.pipelines))


def _has_parts(class_name: str | None, own: str | None, detection: Detection) -> bool:
    """Whether what a task's class needs beyond the repository's own class is there."""
    return needed_parts(class_name) - needed_parts(own) <= set(detection.parts)


def media_fields(spec: ModelSpec, detection: Detection | None) -> tuple[str, ...]:
    """Every field that media can be sent in to this model, for one of its tasks; also a pipeline's own names."""
    found = dict.fromkeys(FIELDS)
    for task in tasks_of(spec, detection):
        slots = media_slots(pipeline_for(spec, detection, task), task)
        found |= dict.fromkeys(slot.own_name for slot in slots if slot.own_name)
    return tuple(found)


def infer_task(spec: ModelSpec, detection: Detection | None, sent: Collection[str]) -> Task:
    """The task that a request means with the media fields that it holds; one the model may not have."""
    known = tasks_of(spec, detection)
    if not sent:
        return next((task for task in known if task in FROM_TEXT), known[0] if known else Task.TEXT_TO_IMAGE)
    fitting = [task for task in known if _fits(pipeline_for(spec, detection, task), task, sent)]
    if fitting:
        return next((task for task in fitting if task not in FROM_TEXT), fitting[0])
    guess = _guess(sent)
    # What lacks a field yet is said to lack it; a guess at another task would only be refused.
    taking = [task for task in known if not media_faults(pipeline_for(spec, detection, task), task, sent).untaken]
    if taking:
        return guess if guess in taking else taking[0]
    if guess is Task.IMAGE_TO_IMAGE:  # one picture can mean many things, and only the model knows which
        return next((task for task in known if task not in FROM_TEXT), guess)
    return guess


def _fits(class_name: str | None, task: Task, sent: Collection[str]) -> bool:
    slots = media_slots(class_name, task)
    taken = {field for fields in assign(slots, sent).values() for field in fields}
    return taken == set(sent) and not missing_fields(slots, task, sent)


def _guess(sent: Collection[str]) -> Task:
    if "video" in sent:
        return Task.VIDEO_TO_VIDEO
    if "mask_image" in sent:
        return Task.INPAINTING
    if "control_image" in sent or "control_images" in sent:
        return Task.CONTROLNET
    return Task.IMAGE_TO_IMAGE
