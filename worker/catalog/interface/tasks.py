"""What a model can be asked for, and which diffusers class answers."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from worker.catalog import architectures
from worker.catalog.architectures import Architecture
from worker.catalog.interface.auto_pipelines import auto_pipelines
from worker.catalog.interface.inputs import FIELDS, VIDEO_TASKS, Slot, assign, default_slots, missing_fields, slots_of
from worker.catalog.interface.signatures import call_parameters, needed_parts
from worker.catalog.repositories import task_of
from worker.core.model import Detection, Kind, ModelSpec, Task

# The picture comes from the caller in all others, and so does its size.
FROM_TEXT = frozenset({Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO})

_T2I, _T2V, _I2V, _V2V = Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO, Task.VIDEO_TO_VIDEO
# Classes whose name and signature together still mislead about what they do.
_TASKS: Mapping[str, tuple[Task, ...]] = {
    "SpandrelUpscalePipeline": (Task.UPSCALING,),
    "UniDiffuserPipeline": (_T2I,),
    "StableCascadeCombinedPipeline": (_T2I, Task.IMAGE_EDITING),
    "WanVACEPipeline": (_T2V, _I2V, _V2V),
    "LTX2ConditionPipeline": (_T2V, _I2V, _V2V),
    "LTX2DFRPipeline": (_T2V, _I2V, _V2V),
    "LTXConditionPipeline": (_T2V, _I2V, _V2V),
    "JoyImageEditPipeline": (Task.IMAGE_EDITING, _T2I),
    "JoyImageEditPlusPipeline": (Task.IMAGE_EDITING, _T2I),
    "BriaFiboEditPipeline": (Task.IMAGE_EDITING, Task.INPAINTING),
    "WanAnimatePipeline": (_V2V,),
    "AnimateDiffControlNetPipeline": (Task.CONTROLNET,),
    "AnimateDiffSparseControlNetPipeline": (Task.CONTROLNET,),
    "CosmosVideoToWorldPipeline": (_I2V, _V2V),
    "Cosmos2VideoToWorldPipeline": (_I2V, _V2V),
    "Cosmos2_5_TransferPipeline": (_V2V,),
    "Kandinsky6TI2VAPipeline": (_T2V, _I2V),
    "LTXI2VLongMultiPromptPipeline": (_I2V, _T2V),
    "FluxKontextInpaintPipeline": (Task.INPAINTING,),
    "QwenImageEditInpaintPipeline": (Task.INPAINTING,),
    "StableDiffusionModelEditingPipeline": (_T2I,),
    "StableDiffusionPix2PixZeroPipeline": (_T2I,),
    "CogVideoXFunControlPipeline": (_V2V,),
    "Kandinsky6SRPipeline": (_V2V,),
    "LTXLatentUpsamplePipeline": (_V2V,),
    "LTX2LatentUpsamplePipeline": (_V2V,),
    "StableDiffusionGLIGENPipeline": (_T2I,),
    "StableDiffusionGLIGENTextImagePipeline": (_T2I,),
    "StableDiffusionDiffEditPipeline": (Task.IMAGE_EDITING, Task.INPAINTING),
}
# What these classes return is a video, whatever their task is called.
_VIDEO = re.compile(
    r"^AnimateDiff|Video|T2V|I2V|^Mochi|^Allegro|^Latte|^SkyReels|^Wan|^Helios|^EasyAnimate|^LTX|^ChronoEdit|^PIA|^Lucy"
    r"|^AnyFlow|^SanaWM|^ConsisID|TI2VA|^I2VGen|World|^Cosmos(?!2TextToImage)|^Kandinsky6|^CogVideo"
)


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


def class_tasks(class_name: str) -> tuple[Task, ...]:
    """What a class can be asked for: by its name, corrected by the media that its call takes and needs."""
    if class_name in _TASKS:
        return _TASKS[class_name]
    named, slots = task_of(class_name), slots_of(class_name)
    if slots is None or named not in FROM_TEXT:
        return (named,)
    fields = {slot.fields[0]: slot.required for slot in slots if slot.fields}
    video = draws_video(class_name, named)
    found = [named]
    if "image" in fields or "images" in fields:
        found.append(_I2V if video else _from_picture(class_name))
    if "video" in fields and video:
        found.append(_V2V)
    return tuple(found[1:]) if any(slot.required for slot in slots) and len(found) > 1 else tuple(found)


def _from_picture(class_name: str) -> Task:
    """Editing is told in words what to change; image-to-image has a strength, or no words at all."""
    signature = call_parameters(class_name) or {}
    return Task.IMAGE_EDITING if "prompt" in signature and "strength" not in signature else Task.IMAGE_TO_IMAGE


def draws_video(class_name: str | None, task: Task) -> bool:
    """Whether what comes back is a video."""
    return task in VIDEO_TASKS or (class_name is not None and _VIDEO.search(class_name) is not None)


def media_slots(class_name: str | None, task: Task) -> tuple[Slot, ...]:
    """What `task` may be sent on this class, where a signature is there to tell."""
    slots = slots_of(class_name)
    return default_slots(task) if slots is None else slots


@dataclass(frozen=True, slots=True)
class MediaFaults:
    """What is wrong with the media fields of a request: not taken, two for the place of one, and missing."""

    untaken: tuple[str, ...] = ()
    crowded: tuple[tuple[str, ...], ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.untaken or self.crowded or self.missing)


def media_faults(class_name: str | None, task: Task, sent: Collection[str]) -> MediaFaults:
    """What `task` would refuse about the media fields `sent`, on this class."""
    slots = media_slots(class_name, task)
    assigned = assign(slots, sent)
    taken = {field for fields in assigned.values() for field in fields}
    single = {slot.parameter for slot in slots if not slot.several}
    return MediaFaults(
        tuple(name for name in sent if name not in taken or (task in FROM_TEXT and name in FIELDS)),
        tuple(fields for parameter, fields in assigned.items() if parameter in single and len(fields) > 1),
        () if task in FROM_TEXT else missing_fields(slots, task, sent),
    )


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
        return next((task for task in known if task in FROM_TEXT), known[0] if known else _T2I)
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
        return _V2V
    if "mask_image" in sent:
        return Task.INPAINTING
    if "control_image" in sent or "control_images" in sent:
        return Task.CONTROLNET
    return Task.IMAGE_TO_IMAGE
