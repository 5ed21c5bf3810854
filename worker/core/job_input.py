"""A job's input after parsing: one of several kinds of request, or the error that refuses it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from worker.core.discovery import DiscoverRequest, UpdatesRequest
from worker.core.errors import WorkerError
from worker.core.golden import GoldenRequest
from worker.core.model import Parsed
from worker.core.pair import Side
from worker.core.request import GenerationRequest
from worker.core.training import TrainingControl, TrainingRequest
from worker.core.version import MAX_WHY, STABLE, HaltRule

ModelAction = Literal["schema", "inspect", "plan", "preload", "unload"]
WorkerAction = Literal["models", "status", "timeline"]
VersionAction = Literal["versions", "history", "report", "promote", "rollback", "split", "pairs", "choose"]
_Plain = Literal[
    "generate",
    "models",
    "schema",
    "inspect",
    "plan",
    "discover",
    "updates",
    "golden",
    "status",
    "timeline",
    "preload",
    "unload",
    "train",
    "train_plan",
    "train_control",
]
Action = _Plain | VersionAction
ACTIONS: tuple[Action, ...] = (*get_args(_Plain), *get_args(VersionAction))


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A question about one model, or an action on it; None is the default model."""

    action: ModelAction
    model: str | None


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A question about the worker itself."""

    action: WorkerAction


class VersionRequest(Parsed):
    """A question about the versions of a model, or a change of which one is served. Each action has its own fields."""

    action: VersionAction
    model: str | None = Field(default=None, min_length=1, max_length=512)
    version: str | None = Field(default=None, min_length=1, max_length=32)
    alias: str = Field(default=STABLE, max_length=32)
    arms: dict[str, float] = Field(default_factory=dict)
    halt: HaltRule = Field(default_factory=HaltRule)
    paired: float = Field(default=0, ge=0, le=100)
    pair: str | None = Field(default=None, min_length=1, max_length=32)
    choice: Side | None = None
    why: str = Field(default="", max_length=MAX_WHY)
    at: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=100, ge=1, le=1_000)
    days: int = Field(default=7, ge=1, le=3_660)


VERSION_FIELDS: Mapping[VersionAction, tuple[str, ...]] = {
    "versions": ("model",),
    "history": ("model", "at", "limit"),
    "report": ("model", "days"),
    "promote": ("model", "version", "alias", "why"),
    "rollback": ("model", "version", "why"),
    "split": ("model", "arms", "halt", "paired", "why"),
    "pairs": ("model",),
    "choose": ("model", "pair", "choice"),
}
Request = (
    GenerationRequest
    | ModelRequest
    | DiscoverRequest
    | UpdatesRequest
    | GoldenRequest
    | WorkerRequest
    | TrainingRequest
    | TrainingControl
    | VersionRequest
)


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
