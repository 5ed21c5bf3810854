"""A job's input after parsing: one of three kinds of request, or the error that refuses it."""

from dataclasses import dataclass
from typing import Literal, get_args

from worker.core.errors import WorkerError
from worker.core.request import GenerationRequest

ModelAction = Literal["schema", "inspect", "plan", "preload", "unload"]
WorkerAction = Literal["models", "status", "timeline"]
Action = Literal["generate", "models", "schema", "inspect", "plan", "status", "timeline", "preload", "unload"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A question about one model, or an action on it; None is the default model."""

    action: ModelAction
    model: str | None


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A question about the worker itself."""

    action: WorkerAction


Request = GenerationRequest | ModelRequest | WorkerRequest


@dataclass(frozen=True, slots=True)
class JobInput:
    """A job's input, parsed as far as possible.

    A caller gets the refusal of an input when the job is run, as on RunPod, so the error stands in place of the
    request. `request` is None once nobody needs it any more. `named_model` is the model as the caller sent it, of any
    type. Equal inputs have the same `fingerprint`. `notes` are warnings about how it was read.
    """

    request: Request | WorkerError | None
    fingerprint: str
    action: Action | Literal["unknown"] = "unknown"
    named_model: object = None
    traceparent: object = None
    notes: tuple[str, ...] = ()
