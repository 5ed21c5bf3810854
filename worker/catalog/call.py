"""One model, and one call of it: its registry entry, what its files say and a diffusers class, brought together.

Whatever is true of the three is derived here, or by a function of `catalog.interface` that takes a Model or ModelCall,
and derived once: `once` keeps it with the object it is a fact of.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Concatenate, ParamSpec, TypeVar

from worker.catalog import architectures
from worker.catalog.architectures import Architecture
from worker.catalog.classes.auto_pipelines import auto_pipelines
from worker.catalog.classes.inputs import FIELDS, assign, missing_fields
from worker.catalog.classes.signatures import CallParameter, call_parameters, needed_parts
from worker.catalog.classes.tasks import (
    FROM_TEXT,
    MediaFaults,
    class_tasks,
    draws_video,
    media_faults,
    media_slots,
)
from worker.catalog.pipelines.table import pipeline_row
from worker.core.call import Call
from worker.core.model import Detection, Kind, ModelSpec, Task
from worker.core.pipeline import PipelineRow, Slot

UNDETECTED = Detection(Kind.UNKNOWN, "unknown")
_Facts = dict[object, object]


@dataclass(frozen=True)
class Model:
    """A model: what its registry entry says and what its files say, or nothing yet."""

    spec: ModelSpec
    detection: Detection = UNDETECTED

    @classmethod
    def declared(cls, spec: ModelSpec) -> "Model":
        """A model as the registry alone declares it."""
        return cls(spec, declared(spec) or UNDETECTED)

    @cached_property
    def facts(self) -> _Facts:
        """What `once` keeps."""
        return {}

    @cached_property
    def architecture(self) -> Architecture | None:
        """Its row of the architecture table: the one that the registry declares, else the one that was detected."""
        return architectures.find(self.spec.architecture) or architectures.find(self.detection.architecture)

    @property
    def pipeline(self) -> str | None:
        """The diffusers class that it is by itself, whatever the task."""
        return self.spec.pipeline or self.detection.pipeline

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks it takes: declared, else what its class's signature shows, else detected or its family's."""
        if self.spec.tasks:
            return self.spec.tasks
        row, own = self.architecture, self.pipeline
        if own is not None and self._is_its_own_class:
            return class_tasks(own)
        known = self._family_tasks
        if row is None or own is None:
            return known
        return (*known, *(task for task in class_tasks(own) if task not in known and task not in row.pipelines))

    @property
    def _family_tasks(self) -> tuple[Task, ...]:
        """The tasks that were detected, else its family's; those that it has the parts for."""
        row = self.architecture
        known = self.detection.tasks or (tuple(row.pipelines) if row else ())
        if row is None or not self.detection.part_classes:  # only a repository says which parts it has
            return known
        return tuple(task for task in known if self._has_parts(row.pipelines.get(task, self.pipeline))) or known

    def pipeline_for(self, task: Task) -> str | None:
        """The diffusers class that serves `task`. One outside the family's row serves every task it is declared for."""
        row, own = self.architecture, self.pipeline
        if row is None:
            return auto_pipelines(own).get(task, own)
        return own if self._is_its_own_class else row.pipelines.get(task, own)

    @cached_property
    def calls(self) -> tuple["ModelCall", ...]:
        """Its calls for all of its tasks, with its Lightning LoRA where it has one: what a request gets by default."""
        return tuple(self.call(task, lightning=self.spec.lightning is not None) for task in self.tasks)

    def call(self, task: Task, *, lightning: bool = False) -> "ModelCall":
        """The call for `task`, of the class that serves it; the same object whenever it is asked for."""
        return _call(self, task, lightning)

    def limited_to(self, tasks: tuple[Task, ...]) -> "Model":
        """The same model, for no other tasks."""
        return self if tasks == self.tasks else Model(self.spec.model_copy(update={"tasks": tasks}), self.detection)

    @cached_property
    def media_fields(self) -> tuple[str, ...]:
        """Every field that takes media for one of its tasks; also a pipeline's own names."""
        slots = [slot for call in self.calls for slot in call.slots]
        return tuple(dict.fromkeys([*FIELDS, *(slot.own_name for slot in slots if slot.own_name)]))

    def infer_task(self, sent: Collection[str]) -> Task:
        """The task that a request means with the media fields that it holds; one the model may not have."""
        if not sent:
            first = self.tasks[0] if self.tasks else Task.TEXT_TO_IMAGE
            return next((task for task in self.tasks if task in FROM_TEXT), first)
        fitting = [call.task for call in self.calls if call.is_filled_by(sent)]
        if fitting:
            return _beyond_text(fitting, fitting[0])
        guess = _guess(sent)
        # What lacks a field yet is told what it lacks; a guess at another task would only be refused.
        taking = [call.task for call in self.calls if not call.media_faults(sent).untaken]
        if taking:
            return guess if guess in taking else taking[0]
        if guess is Task.IMAGE_TO_IMAGE:  # one image can mean many things, and only the model knows which
            return _beyond_text(self.tasks, guess)
        return guess

    @cached_property
    def _is_its_own_class(self) -> bool:
        """Whether its class is none of those that its family's row names."""
        row, own = self.architecture, self.pipeline
        return own is not None and (row is None or own not in row.pipelines.values())

    def _has_parts(self, class_name: str | None) -> bool:
        """Whether its repository has what `class_name` needs beyond the repository's own class."""
        return needed_parts(class_name) - needed_parts(self.pipeline) <= set(self.detection.parts)


def _beyond_text(tasks: Iterable[Task], otherwise: Task) -> Task:
    """The first of the tasks that starts from more than text."""
    return next((task for task in tasks if task not in FROM_TEXT), otherwise)


@dataclass(frozen=True)
class ModelCall:
    """One model called for one task as one pipeline class; `pipeline` is empty where nothing tells which."""

    model: Model
    task: Task
    pipeline: str
    lightning: bool = False

    @cached_property
    def facts(self) -> _Facts:
        """What `once` keeps."""
        return {}

    @property
    def spec(self) -> ModelSpec:
        """The model's registry entry."""
        return self.model.spec

    @property
    def detection(self) -> Detection:
        """What the model's files are."""
        return self.model.detection

    @property
    def architecture(self) -> Architecture | None:
        """The model's row of the architecture table."""
        return self.model.architecture

    @classmethod
    def of(cls, job_call: Call) -> "ModelCall":
        """The call of a job, of which core knows the plain facts."""
        if isinstance(job_call, cls):
            return job_call
        model = Model(job_call.spec, job_call.detection)
        return cls(model, job_call.task, job_call.pipeline, job_call.lightning)

    def as_class(self, pipeline: str) -> "ModelCall":
        """The same call of another class of the same model: the one that draws with ControlNets, say."""
        return self if pipeline == self.pipeline else replace(self, pipeline=pipeline)

    @property
    def others(self) -> tuple["ModelCall", ...]:
        """The model's calls for its other tasks; none beside the call of another class."""
        if self.pipeline != (self.model.pipeline_for(self.task) or ""):
            return ()
        return tuple(call for call in self.model.calls if call.task is not self.task)

    @property
    def from_text(self) -> bool:
        """Whether the task starts from words alone."""
        return self.task in FROM_TEXT

    @cached_property
    def row(self) -> PipelineRow:
        """The facts of the class that no signature tells."""
        return pipeline_row(self.pipeline)

    @cached_property
    def signature(self) -> Mapping[str, CallParameter] | None:
        """The parameters of the class's call; None where diffusers does not know it here."""
        return call_parameters(self.pipeline)

    def takes(self, *parameters: str) -> bool:
        """Whether the class's call is known to take all of `parameters`."""
        return self.signature is not None and self.signature.keys() >= {*parameters}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The parameters of the class's call that take media."""
        return media_slots(self.pipeline, self.task)

    @cached_property
    def draws_video(self) -> bool:
        """Whether a video comes back."""
        return draws_video(self.pipeline, self.task)

    def media_faults(self, sent: Collection[str]) -> MediaFaults:
        """What the task would refuse about the media fields `sent`."""
        return media_faults(self.slots, self.task, sent)

    def is_filled_by(self, sent: Collection[str]) -> bool:
        """Whether the media fields `sent` are all taken, and all that is needed."""
        taken = {field for fields in assign(self.slots, sent).values() for field in fields}
        return taken == set(sent) and not missing_fields(self.slots, self.task, sent)


def declared(spec: ModelSpec) -> Detection | None:
    """What the registry alone says a model is: enough to check a request before a byte is fetched, or None."""
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
    """Have `derive` run once for each object and arguments: what it returns is kept, and nobody may change it."""

    @wraps(derive)
    def kept(subject: S, /, *args: P.args, **named: P.kwargs) -> R:
        key = (derive, args, tuple(named.items()))
        if key not in subject.facts:
            subject.facts[key] = derive(subject, *args, **named)
        fact: R = subject.facts[key]  # type: ignore[assignment]
        return fact

    return kept


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
