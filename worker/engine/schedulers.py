"""A fresh scheduler for every job: schedulers carry state from step to step, and must not from job to job."""

from collections.abc import Mapping
from typing import Any

import diffusers

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
