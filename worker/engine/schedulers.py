"""A fresh scheduler for every job: schedulers carry state from step to step, and must not from job to job."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from pydantic import JsonValue

from worker.core.errors import ParameterOutOfRange
from worker.core.job import SchedulerChoice


def build_scheduler(config: Mapping[str, Any], own: type, wanted: SchedulerChoice | None) -> Any:
    """The model's own scheduler anew, or the `wanted` class with the model's noise schedule.

    Raises ParameterOutOfRange when the class cannot take this model's schedule.
    """
    if wanted is None:
        return own.from_config(config)
    cls = getattr(diffusers, wanted.cls, None)
    compatible = {own.__name__, *getattr(own, "_compatibles", [])}
    if cls is None or wanted.cls not in compatible:
        names = ", ".join(sorted(compatible))
        raise ParameterOutOfRange(
            f"scheduler {wanted.name!r} does not fit this model, whose own is {own.__name__}; choose one of {names}.",
            field="scheduler",
        )
    return cls.from_config(config, **wanted.options)


def check_schedule(pipe: Any, params: Mapping[str, JsonValue]) -> None:
    """Refuse a schedule of the job's own that the scheduler cannot take. Raises ParameterOutOfRange."""
    scheduler = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "set_timesteps"):
        return
    taken = inspect.signature(scheduler.set_timesteps).parameters
    for name in ("timesteps", "sigmas"):
        if params.get(name) is not None and name not in taken:
            raise ParameterOutOfRange(
                f"{name} cannot be given to {type(scheduler).__name__}, which this job draws with; "
                "leave it out, or name another scheduler.",
                field=name,
            )
