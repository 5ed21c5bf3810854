"""A fresh scheduler for every job: schedulers carry state from step to step, and must not from job to job."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from pydantic import JsonValue

from worker.core.errors import ParameterOutOfRange
from worker.core.job import SchedulerChoice
from worker.engine.arguments import parameters_of


def build_scheduler(own: Any, wanted: SchedulerChoice | None) -> Any:
    """Return a copy of `own`, the model's scheduler, or the `wanted` class or options with its noise schedule.

    Raises ParameterOutOfRange when the choice does not fit the model that was loaded.
    """
    if wanted is None:
        return _sound(_copied(own))
    config, own_class = own.config, type(own)
    cls = own_class if wanted.cls is None else getattr(diffusers, wanted.cls, None)
    if cls is None or (cls is not own_class and own_class.__name__ not in wanted.replaces):
        raise ParameterOutOfRange(
            f"scheduler {wanted.name!r} does not fit this model, whose own is {own_class.__name__}; "
            "leave it out, or name that one.",
            field="scheduler",
        )
    accepted = parameters_of(cls.__init__)
    options = dict(wanted.options) | (_flow_options(config, accepted, wanted) if wanted.flow else {})
    foreign = [name for name, value in options.items() if name not in accepted and value is not False]
    if foreign:
        field = "shift" if "shift" in foreign else "schedule"
        raise ParameterOutOfRange(
            f"{field} cannot be given to {cls.__name__}, which this model brings; leave it out, or name a scheduler.",
            field=field,
        )
    return _sound(cls.from_config(config, **{name: value for name, value in options.items() if name in accepted}))


def _copied(own: Any) -> Any:
    """Return a copy of a scheduler, in a tenth of from_config's time: its config is frozen, and may be shared."""
    config = getattr(own, "_internal_dict", None)
    return copy.deepcopy(own, {id(config): config} if isinstance(config, FrozenDict) else {})


def _sound(scheduler: Any) -> Any:
    """Return the scheduler, kept from dividing by zero: UniPC with B1, and one whose end is stretched."""
    if isinstance(scheduler, diffusers.UniPCMultistepScheduler) and scheduler.config.solver_type == "bh1":
        scheduler.__class__ = _ending_in_b2(scheduler.__class__)
    if getattr(scheduler.config, "shift_terminal", None):
        scheduler.__class__ = _stretching_several(scheduler.__class__)
    return scheduler


@functools.cache
def _stretching_several(cls: type[Any]) -> type[Any]:
    """Return a class whose schedule of one step stays as it is.

    A schedule is stretched so that it ends at `shift_terminal`. One step ends where it begins: diffusers 0.42.1 divides
    zero by zero there, and finds no step for what is no number.
    """
    stretch = cls.stretch_shift_to_terminal

    @functools.wraps(stretch)
    def stretched(self: Any, t: Any) -> Any:
        return stretch(self, t) if t[-1] < 1 else t

    return type(cls.__name__, (cls,), {"stretch_shift_to_terminal": stretched})


@functools.cache
def _ending_in_b2(cls: type[Any]) -> type[Any]:
    """Return a UniPC class with B1 that takes the step to no noise at all with B2.

    That step is of first order, where B is multiplied by zero. B1 is infinite there, so that diffusers 0.42.1
    generates nothing but NaN; B2 is finite.
    """
    predict = cls.multistep_uni_p_bh_update

    @functools.wraps(predict)
    def predicted(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_last = not self.sigmas[self.step_index + 1].any()
        if is_last:
            self.register_to_config(solver_type="bh2")
        try:
            return predict(self, *args, **kwargs)
        finally:
            if is_last:
                self.register_to_config(solver_type="bh1")

    return type(cls.__name__, (cls,), {"multistep_uni_p_bh_update": predicted})


def _flow_options(config: Mapping[str, Any], accepted: Mapping[str, Any], wanted: SchedulerChoice) -> dict[str, Any]:
    """Return options for `wanted` to sample a flow with the model's shift or the job's. Classes name it in two ways."""
    options: dict[str, Any] = {}
    shift_name = "flow_shift" if "flow_shift" in accepted else "shift"
    if shift_name == "flow_shift":
        options |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    shift = config.get("flow_shift", config.get("shift")) if wanted.shift is None else wanted.shift
    if wanted.shift is not None:
        # A flow's sigmas are shifted by a number, or by the image's size: not by both.
        options |= {"shift": shift, "use_dynamic_shifting": False}
    if shift_name in accepted and shift is not None:
        options.pop("shift", None)
        options[shift_name] = shift
    return options


def check_schedule(pipe: Any, params: Mapping[str, JsonValue]) -> None:
    """Refuse a schedule of the job's own that the scheduler cannot take. Raises ParameterOutOfRange."""
    scheduler: Any = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "set_timesteps"):
        return
    accepted = parameters_of(type(scheduler).set_timesteps)
    for name in ("timesteps", "sigmas"):
        if params.get(name) is not None and name not in accepted:
            raise ParameterOutOfRange(
                f"{name} cannot be given to {type(scheduler).__name__}, which this job draws with; "
                "leave it out, or name another scheduler.",
                field=name,
            )


@contextmanager
def seeded_steps(pipe: Any, seeds: Sequence[int], generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Let the scheduler take each image's noise from that image's seed, whether or not the pipeline passes a generator.

    Without this, pipelines that were not written to add noise would take it from torch's own generator, the same for
    all images. By class, not by attribute: a pipeline may deep-copy its scheduler.
    """
    scheduler = pipe.scheduler
    cls = type(scheduler)
    if hasattr(scheduler, "noise_sampler_seed"):  # a tree of Brownian motion, grown from a number
        scheduler.noise_sampler_seed = [*seeds] if len(seeds) > 1 else seeds[0]
    # A flow's Euler adds no noise by default, and Bria's pipeline checks for its very class.
    is_stochastic = scheduler.config.get("stochastic_sampling", True)
    if is_stochastic and "generator" in parameters_of(cls.step):
        generator = generators[0] if len(generators) == 1 else [*generators]
        scheduler.__class__ = type(cls.__name__, (cls,), {"step": _seeded_step(generator, cls.step)})
    try:
        yield
    finally:
        scheduler.__class__ = cls


def _seeded_step(generator: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    position = list(parameters_of(step)).index("generator") - 1  # among the arguments after self

    @functools.wraps(step)  # pipelines look at its signature
    def seeded(self: Any, *args: Any, **kwargs: Any) -> Any:
        # CycleDiffusion brings its noise along, which DDIM takes instead of a generator and not beside one.
        if len(args) <= position and kwargs.get("generator") is None and kwargs.get("variance_noise") is None:
            kwargs["generator"] = generator
        return step(self, *args, **kwargs)

    return seeded
