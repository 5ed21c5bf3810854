"""A model and its calls: the registry entry, the detection and the diffusers class, brought together.

Every fact about the three is derived here, or by a function of `catalog.interface` that takes a Model or ModelCall.
It is derived once: `once` keeps it with the object that it describes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Concatenate, ParamSpec, TypeVar

from worker.catalog import architectures
from worker.catalog.architectures import Architecture
from worker.catalog.classes.auto_pipelines import auto_pipelines
from worker.catalog.classes.inputs import FIELDS, assign, missing_fields
from worker.catalog.classes.modular import is_modular
from worker.catalog.classes.signatures import CallParameter, call_parameters, needed_parts
from worker.catalog.classes.tasks import (
    FROM_TEXT,
    MediaFaults,
    class_tasks,
    makes_video,
    media_faults,
    media_slots,
    tasks_with,
)
from worker.catalog.pipelines.table import pipeline_row
from worker.core.call import Call
from worker.core.model import Detection, Kind, ModelSpec, Task
from worker.core.pipeline import PipelineRow, Slot

UNDETECTED = Detection(Kind.UNKNOWN, "unknown")
_Facts = dict[object, object]


@dataclass(frozen=True)
class Model:
    """A model: its registry entry, and the detection of its files, which is unknown at first."""

    spec: ModelSpec
    detection: Detection = UNDETECTED

    @classmethod
    def declared(cls, spec: ModelSpec) -> "Model":
        """Return the model as the registry alone declares it."""
        return cls(spec, declared(spec) or UNDETECTED)

    @cached_property
    def facts(self) -> _Facts:
        """The facts about the model that `once` keeps."""
        return {}

    @cached_property
    def architecture(self) -> Architecture | None:
        """The model's row of the architecture table, as the registry declares it, else as it was detected."""
        return architectures.find(self.spec.architecture) or architectures.find(self.detection.architecture)

    @property
    def pipeline(self) -> str | None:
        """The model's own diffusers class, whatever the task."""
        return self.spec.pipeline or self.detection.pipeline

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The model's tasks: as declared, else as its class's signature shows, else as detected, else its family's."""
        if self.spec.tasks:
            return self.spec.tasks
        row, class_name = self.architecture, self.pipeline
        if class_name is not None and self.detection.format == "modular" and is_modular(class_name):
            return tasks_with(class_name, self.detection.parts)
        if class_name is not None and self._is_its_own_class:
            return class_tasks(class_name)
        family_tasks = self._family_tasks
        if row is None or class_name is None:
            return family_tasks
        return (
            *family_tasks,
            *(task for task in class_tasks(class_name) if task not in family_tasks and task not in row.pipelines),
        )

    @property
    def _family_tasks(self) -> tuple[Task, ...]:
        """The detected tasks, else the family's, as far as the repository has the parts for them."""
        row = self.architecture
        tasks = self.detection.tasks or (tuple(row.pipelines) if row else ())
        if row is None or not self.detection.part_classes:  # only a repository says which parts it has
            return tasks
        return tuple(task for task in tasks if self._has_parts(row.pipelines.get(task, self.pipeline))) or tasks

    def pipeline_for(self, task: Task) -> str | None:
        """Return the diffusers class that serves `task`.

        A class outside the family's row serves every task that it is declared for.
        """
        row, class_name = self.architecture, self.pipeline
        if row is None:
            return auto_pipelines(class_name).get(task, class_name)
        return class_name if self._is_its_own_class else row.pipelines.get(task, class_name)

    @cached_property
    def calls(self) -> tuple["ModelCall", ...]:
        """The calls for all tasks, with the Lightning LoRA where there is one: a request gets these by default."""
        return tuple(
            self.call(task, lightning=bool(self.spec.lightning and self.spec.lightning.by_default))
            for task in self.tasks
        )

    def call(self, task: Task, *, lightning: bool = False) -> "ModelCall":
        """Return the call for `task`, of the class that serves it; every time the same object."""
        return _call(self, task, lightning)

    def limited_to(self, tasks: tuple[Task, ...]) -> "Model":
        """Return the same model for these tasks only."""
        return self if tasks == self.tasks else Model(self.spec.model_copy(update={"tasks": tasks}), self.detection)

    @cached_property
    def media_fields(self) -> tuple[str, ...]:
        """Every field that takes media for one of the tasks; a pipeline's own names too."""
        slots = [slot for call in self.calls for slot in call.slots]
        return tuple(dict.fromkeys([*FIELDS, *(slot.own_name for slot in slots if slot.own_name)]))

    def infer_task(self, sent: Collection[str]) -> Task:
        """Return the task that a request means by the media fields `sent`; the model may lack it."""
        if not sent:
            first = self.tasks[0] if self.tasks else Task.TEXT_TO_IMAGE
            return next((task for task in self.tasks if task in FROM_TEXT), first)
        filled = [call.task for call in self.calls if call.is_filled_by(sent)]
        if filled:
            return _beyond_text(filled, filled[0])
        guess = _guess(sent)
        # A request that lacks a field gets an error that names it; a guess at another task would only be refused.
        open_tasks = [call.task for call in self.calls if not call.media_faults(sent).untaken]
        if open_tasks:
            return guess if guess in open_tasks else open_tasks[0]
        if guess is Task.IMAGE_TO_IMAGE:  # one image can mean many things, and only the model knows which
            return _beyond_text(self.tasks, guess)
        return guess

    @cached_property
    def _is_its_own_class(self) -> bool:
        """True if the model's class is none of those that its family's row names."""
        row, class_name = self.architecture, self.pipeline
        return class_name is not None and (row is None or class_name not in row.pipelines.values())

    def _has_parts(self, class_name: str | None) -> bool:
        """True if the repository has the parts that `class_name` needs beyond the repository's own class."""
        return needed_parts(class_name) - needed_parts(self.pipeline) <= set(self.detection.parts)


def _beyond_text(tasks: Iterable[Task], otherwise: Task) -> Task:
    """Return the first of the tasks that starts from more than text."""
    return next((task for task in tasks if task not in FROM_TEXT), otherwise)


@dataclass(frozen=True)
class ModelCall:
    """One model called for one task as one pipeline class; `pipeline` is empty where the class is unknown."""

    model: Model
    task: Task
    pipeline: str
    lightning: bool = False

    @cached_property
    def facts(self) -> _Facts:
        """The facts about the call that `once` keeps."""
        return {}

    @property
    def spec(self) -> ModelSpec:
        """The model's registry entry."""
        return self.model.spec

    @property
    def detection(self) -> Detection:
        """The detection of the model's files."""
        return self.model.detection

    @property
    def architecture(self) -> Architecture | None:
        """The model's row of the architecture table."""
        return self.model.architecture

    @classmethod
    def of(cls, job_call: Call) -> "ModelCall":
        """Return the full call for a job's call, of which core knows the plain facts."""
        if isinstance(job_call, cls):
            return job_call
        model = Model(job_call.spec, job_call.detection)
        return cls(model, job_call.task, job_call.pipeline, job_call.lightning)

    def as_class(self, pipeline: str) -> "ModelCall":
        """Return the same call of another class of the same model, such as the one that takes ControlNets."""
        return self if pipeline == self.pipeline else replace(self, pipeline=pipeline)

    @property
    def others(self) -> tuple["ModelCall", ...]:
        """The model's calls for its other tasks; none beside the call of another class."""
        if self.pipeline != (self.model.pipeline_for(self.task) or ""):
            return ()
        return tuple(call for call in self.model.calls if call.task is not self.task)

    @property
    def from_text(self) -> bool:
        """True if the task starts from words alone."""
        return self.task in FROM_TEXT

    @cached_property
    def row(self) -> PipelineRow:
        """The facts about the class that no signature shows."""
        return pipeline_row(self.pipeline)

    @cached_property
    def signature(self) -> Mapping[str, CallParameter] | None:
        """The parameters of the class's call; None where the installed diffusers does not have the class."""
        return call_parameters(self.pipeline)

    def takes(self, *parameters: str) -> bool:
        """True if the class's call is known to take all of `parameters`."""
        return self.signature is not None and self.signature.keys() >= {*parameters}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The parameters of the class's call that take media."""
        return media_slots(self.pipeline, self.task)

    @cached_property
    def makes_video(self) -> bool:
        """True if a video comes back."""
        return makes_video(self.pipeline, self.task)

    def media_faults(self, sent: Collection[str]) -> MediaFaults:
        """Return the faults for which the task would refuse the media fields `sent`."""
        return media_faults(self.slots, self.task, sent)

    def is_filled_by(self, sent: Collection[str]) -> bool:
        """True if the task takes all media fields `sent` and needs no others."""
        taken = {field for fields in assign(self.slots, sent).values() for field in fields}
        return taken == set(sent) and not missing_fields(self.slots, self.task, sent)


def declared(spec: ModelSpec) -> Detection | None:
    """Return the detection that the registry alone declares, or None.

    It is enough to check a request before a byte is fetched.
    """
    row = architectures.find(spec.architecture)
    if row is None:
        return None
    tasks = spec.tasks or tuple(row.pipelines)
    evidence = (f"models.yaml declares {spec.id} as {row.id}",)
    return Detection(Kind.PIPELINE, "declared", row.id, spec.pipeline, tasks, evidence=evidence)


S = TypeVar("S", Model, ModelCall)
P = ParamSpec("P")
R = TypeVar("R")


def once(derive: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run `derive` once for each object and arguments; its result is kept, and nobody may change it."""

    @wraps(derive)
    def derive_once(subject: S, /, *args: P.args, **keywords: P.kwargs) -> R:
        key = (derive, args, tuple(keywords.items()))
        if key not in subject.facts:
            subject.facts[key] = derive(subject, *args, **keywords)
        fact: R = subject.facts[key]  # type: ignore[assignment]
        return fact

    return derive_once


@once
def _call(model: Model, task: Task, lightning: bool) -> ModelCall:
    return ModelCall(model, task, model.pipeline_for(task) or "", lightning)


def _guess(sent: Collection[str]) -> Task:
    if "video" in sent:
        return Task.VIDEO_TO_VIDEO
    if "mask_image" in sent:
        return Task.INPAINTING
    if "control_image" in sent or "control_images" in sent:
        return Task.CONTROLNET
    return Task.IMAGE_TO_IMAGE
