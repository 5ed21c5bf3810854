"""A hook on every denoising step of any pipeline: to report it, and to stop there when the job has to."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from worker.core.pipeline import PipelineRow
from worker.core.result import Emit, Progress
from worker.engine.arguments import Signature
from worker.engine.modular import is_modular
from worker.engine.modular_steps import watched_loops

# The number of the step, and the latents after it where the pipeline shows them.
AfterStep = Callable[[int, Any], None]


def part_of(emit: Emit, index: int, of: int) -> Emit:
    """Return `emit` for one of several calls that a job takes: its steps are reported as a part of all."""

    def emit_part(progress: Progress) -> None:
        if progress.phase == "inference":
            earlier = index * progress.total
            progress = replace(progress, step=earlier + progress.step, total=of * progress.total)
        emit(progress)

    return emit_part


@contextmanager
def watched(pipe: Any, row: PipelineRow, signature: Signature, after_step: AfterStep) -> Iterator[dict[str, Any]]:
    """Yield the arguments with which `pipe` reports its steps, counted from 0. An error of `after_step` ends the call.

    A pipeline that takes no callback, or reports a part of its steps only, is watched through its schedulers; a
    modular one through its loops, and through its schedulers where they step elsewhere.
    """
    takes = () if row.steps_by_scheduler else signature
    if is_modular(type(pipe)):
        with watched_loops(pipe, after_step) as is_turning:

            def after_other(step: int, latents: Any) -> None:
                if not is_turning():
                    after_step(step, latents)

            with _hooked_schedulers(pipe, after_other):
                yield {}
        return
    if "callback_on_step_end" in takes:

        def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            after_step(step, tensors.get("latents"))
            return {}  # nothing changed: LTX's long videos would go on with the latents that they showed

        yield {"callback_on_step_end": on_step_end}
    elif "callback" in takes:
        yield {"callback": lambda step, timestep, latents: after_step(step, latents), "callback_steps": 1}
    else:
        with _hooked_schedulers(pipe, after_step):
            yield {}


@contextmanager
def _hooked_schedulers(pipe: Any, after_step: AfterStep) -> Iterator[None]:
    """Let every scheduler's `step` report. By class, not by attribute: a pipeline may deep-copy its scheduler."""
    schedulers = [part for part in getattr(pipe, "components", {}).values() if hasattr(type(part), "step")]
    classes = [(scheduler, type(scheduler)) for scheduler in schedulers]
    count = iter(range(1_000_000))
    for scheduler, cls in classes:
        scheduler.__class__ = type(cls.__name__, (cls,), {"step": _reporting(cls.step, after_step, count)})
    try:
        yield
    finally:
        for scheduler, cls in classes:
            scheduler.__class__ = cls


def _reporting(step: Callable[..., Any], after_step: AfterStep, count: Iterator[int]) -> Callable[..., Any]:
    @functools.wraps(step)  # pipelines look at its signature
    def reporting(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        after_step(next(count), None)
        return result

    return reporting
