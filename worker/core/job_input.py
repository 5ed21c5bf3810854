"""A job's input, once it was read: one of three kinds of request, or why it cannot be taken."""

from dataclasses import dataclass
from typing import Literal, get_args

from worker.core.errors import WorkerError
from worker.core.request import GenerationRequest

ModelAction = Literal["schema", "inspect", "plan", "preload", "unload"]
WorkerAction = Literal["models", "status"]
Action = Literal["generate", "models", "schema", "inspect", "plan", "status", "preload", "unload"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A question about one model, or what to do with it; None is the default model."""

    action: ModelAction
    model: str | None


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A question about the worker itself."""

    action: WorkerAction


Request = GenerationRequest | ModelRequest | WorkerRequest


@dataclass(frozen=True, slots=True)
class JobInput:
    """A job's input, read as far as that went.

    A caller hears of what is wrong with it when the job is run, as on RunPod; so a refusal stands in place of the
    request. It is None once nobody needs it any more. `named_model` is the model in the caller's words, whatever that
    was. Inputs that were sent alike have the same `fingerprint`.
    """

    request: Request | WorkerError | None
    fingerprint: str
    action: Action | Literal["unknown"] = "unknown"
    named_model: object = None
    traceparent: object = None
