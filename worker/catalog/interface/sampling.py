"""The schedulers that fit a model, and the choice among them by a request's `scheduler`, `schedule` and `shift`."""

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall, once
from worker.catalog.classes.annotations import Schema
from worker.catalog.samplers import (
    AUTOMATIC,
    SAMPLERS,
    Named,
    Sampler,
    folded,
    names_of,
    read_name,
    read_schedule,
    unserved,
    unserved_schedule,
)
from worker.catalog.schedulers import CLASSES, SCHEDULES, Noise, Options, lists_of
from worker.core.errors import ParameterOutOfRange
from worker.core.job import SchedulerChoice

FILE = Path(__file__).parent / "pipeline_schedulers.json"
_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
FIELDS = ("scheduler", "schedule", "shift")
LISTS = ("timesteps", "sigmas")


@dataclass(frozen=True, slots=True)
class Fit:
    """The scheduler classes that fit a model, its `own` first where it is known.

    `shifting` are those that take `shift` for it.
    """

    own: str | None
    noise: Noise | None
    classes: tuple[str, ...]
    shifting: frozenset[str] = frozenset()

    @property
    def schedules(self) -> tuple[str, ...]:
        """The schedules that at least one of the classes has."""
        served = {name for cls in self.classes if cls in CLASSES for name in CLASSES[cls].schedules_of(self.noise)}
        return tuple(name for name in SCHEDULES if name in served)

    @property
    def names(self) -> tuple[str, ...]:
        """The values of `scheduler` that a request may hold, samplers first; each may be followed by a schedule."""
        return (*(sampler.name for sampler in SAMPLERS if self.class_of(sampler)), *self.classes)

    def takes(self, name: str) -> bool:
        """True if one of the classes takes the list `name`, `timesteps` or `sigmas`."""
        return any(name in lists_of(cls, self.noise) for cls in self.classes)

    def class_of(self, sampler: Sampler) -> str | None:
        """Return the class that `sampler` is for this model, if it fits."""
        cls = sampler.classes.get(self.noise) if self.noise else None
        return cls if cls in self.classes else None

    def schedules_of(self, cls: str | None) -> Mapping[str, Options]:
        """Return the schedules that a class has for this model."""
        row = CLASSES.get(cls or "")
        return row.schedules_of(self.noise) if row else {}


@once
def fit_of(call: ModelCall) -> Fit:
    """Return the schedulers that fit a model for its task: by its weights' prediction and by its pipeline's tests."""
    noise, own = native(call.model)
    classes = (own,) if own else ()
    measured = _measured().get(call.pipeline)
    row = CLASSES.get(own or "")
    shifting = frozenset({row.name} if row and row.shifts and noise == "flow" else ())
    if noise is None or call.row.own_scheduler or measured is None:
        return Fit(own, noise, classes, shifting)
    if not measured.classes:  # it has a second pipeline inside, which ignores the scheduler that is set here
        return Fit(own, None, classes)
    if measured.noise != noise and (measured.noise, noise) != ("diffusion", "edm"):
        return Fit(own, noise, classes, shifting)
    runs = measured.classes if measured.noise == noise else frozenset(CLASSES)
    others = tuple(name for name in _fitting(noise, runs, call.detection.zero_snr) if name != own)
    return Fit(own, noise, classes + others, measured.shifting | shifting)


def _fitting(noise: Noise, runs: Collection[str], zero_snr: bool) -> list[str]:
    """Return those of the classes `runs` that sample this noise, down to zero signal for a model trained so."""
    fitting = (row for row in CLASSES.values() if noise in row.noise and row.name in runs)
    return [row.name for row in fitting if row.zero_snr or not zero_snr]


def sampling_properties(fit: Fit) -> dict[str, Schema]:
    """Return the JSON Schema of the sampling fields that a model takes."""
    text = "How the steps are made: a sampler, with or without a schedule behind it; the model's own when left out."
    schemas: dict[str, Schema] = {"scheduler": {**_TEXT, "description": text}}
    if fit.schedules:
        text = f"Where the steps are: {', '.join(fit.schedules)}, as far as the scheduler draws them."
        schemas["schedule"] = {**_TEXT, "description": f"{text} The model's own when left out."}
    if fit.shifting:
        text = "Moves the steps towards noise, the more the higher; large images and videos want more."
        schemas["shift"] = {"type": "number", "minimum": 0.01, "maximum": 100, "description": text}
    return schemas


def sampling_examples(fit: Fit, usual: Mapping[str, JsonValue]) -> dict[str, tuple[str, ...]]:
    """Return the schedulers and schedules that a request may name alone; `usual` are the model's defaults."""
    return {
        "scheduler": tuple(name for name in fit.names if _is_taken({"scheduler": name}, usual, fit)),
        "schedule": tuple(name for name in fit.schedules if _is_taken({"schedule": name}, usual, fit)),
    }


def needs_scheduler(fit: Fit, usual: Mapping[str, JsonValue], fields: Collection[str]) -> tuple[str, ...]:
    """Return those of `fields` that are refused unless a scheduler is named with them.

    The model's usual scheduler has no use for them. `usual` are the defaults that a request has without them.
    """
    samples: dict[str, JsonValue] = {"timesteps": [1], "sigmas": [1.0], "shift": 1.0}
    return tuple(name for name in samples if name in fields and not _is_taken({name: samples[name]}, usual, fit))


def said_of(params: Mapping[str, JsonValue], sent: Collection[str]) -> dict[str, JsonValue]:
    """Return the FIELDS of `params`; `sent` are those params that the request itself holds."""
    choices = {name: params[name] for name in FIELDS if name in params}
    if "scheduler" in sent and "schedule" not in sent:
        choices.pop("schedule", None)  # the model's default is one for the model's default scheduler
    return choices


def choose(
    fields: Mapping[str, JsonValue], params: Mapping[str, JsonValue], fit: Fit, model: str
) -> SchedulerChoice | None:
    """Return the choice that `fields`, the values of FIELDS, make; None where they make none.

    `params` may hold a list of the job's own. Raises ParameterOutOfRange for a scheduler, schedule, shift or list that
    does not fit the model, and names those that do.
    """
    name, schedule, shift = (_unless_automatic(field, fields.get(field)) for field in FIELDS)
    lists = [field for field in LISTS if params.get(field) is not None]
    if name is None and schedule is None and shift is None and not lists:
        return None
    chosen = _scheduler(name, fit, model) if isinstance(name, str) else _Chosen(fit.own)
    options = dict(chosen.options)
    if isinstance(name, str):
        schedule = _one_schedule(chosen.schedule, schedule, name)
        _check_package(chosen.cls, name)
    if isinstance(schedule, str):
        schedule = _known_schedule(schedule, fit, model)
        options |= _schedule(schedule, chosen.cls, fit, model)
    if lists:
        options |= _check_lists(lists, params, chosen.cls, schedule, fit)
    if shift is not None:
        _check_shift(chosen.cls, fit, model)
    if not chosen.name and fit.noise is None:
        return None  # a list alone, for a scheduler that is unknown here: the engine checks it
    return _choice(chosen, options, schedule, shift, fit)


def _unless_automatic(field: str, value: JsonValue) -> JsonValue:
    """Return `value`; None for a schedule that only asks for the scheduler's own."""
    return None if field == "schedule" and isinstance(value, str) and folded(value) in AUTOMATIC else value


def _check_shift(cls: str | None, fit: Fit, model: str) -> None:
    if cls not in fit.shifting:
        raise ParameterOutOfRange(
            f"shift cannot be given to {cls or 'the scheduler of this model'} with {model}; "
            f"leave it out, or send scheduler: {' or '.join(sorted(fit.shifting))}.",
            field="shift",
        )


def _choice(chosen: "_Chosen", options: Options, schedule: JsonValue, shift: JsonValue, fit: Fit) -> SchedulerChoice:
    return SchedulerChoice(
        name=chosen.name,
        cls=chosen.cls if chosen.name else None,
        options=options,
        schedule=schedule if isinstance(schedule, str) else None,
        shift=float(shift) if isinstance(shift, int | float) else None,
        flow=fit.noise == "flow",
        replaces=frozenset(row.name for row in CLASSES.values() if fit.noise in row.noise) | {fit.own or ""},
    )


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A scheduler's class, its name in a request, and the options and schedule that the name implies."""

    cls: str | None
    name: str | None = None
    options: Options = field(default_factory=dict)
    schedule: str | None = None


def _scheduler(name: str, fit: Fit, model: str) -> _Chosen:
    """Return the scheduler of this name, if it fits the model. Raises ParameterOutOfRange."""
    named = _named(name, fit, model)
    sampler = named.sampler
    cls = fit.class_of(sampler) if sampler else named.cls
    row = CLASSES.get(cls or "")
    options = {**(row.options if row else {}), **(sampler.options if sampler else {})}
    return _Chosen(cls, sampler.name if sampler and sampler.options else cls, options, named.schedule)


def _is_taken(sent: Mapping[str, JsonValue], usual: Mapping[str, JsonValue], fit: Fit) -> bool:
    """True if a model with these defaults takes a request with only `sent` of the sampling fields."""
    params = {**usual, **sent}
    try:
        choose(said_of(params, sent), params, fit, "")
    except ParameterOutOfRange:
        return False
    return True


def _named(name: str, fit: Fit, model: str) -> Named:
    """Return the sampler or class of this name, if it fits the model. Raises ParameterOutOfRange."""
    named = read_name(name)
    if named is None and fit.own is not None and name.removesuffix("Scheduler") == fit.own.removesuffix("Scheduler"):
        return Named(cls=fit.own)  # a class that stands in no table but is the model's own
    if named is not None and ((named.sampler and fit.class_of(named.sampler)) or named.cls in fit.classes):
        return named
    text, closest = _not_fitting(name, named, fit, model)
    raise ParameterOutOfRange(text, field="scheduler", hint=f"Did you mean {closest}?" if closest else None)


def _not_fitting(name: str, named: Named | None, fit: Fit, model: str) -> tuple[str, str | None]:
    """Return the reason why a scheduler's name is refused, and the closest name that would be taken."""
    shown, names, nearest = name[:64], ", ".join(fit.names) or "none by name, only its own", unserved(name)
    if named is not None:
        sampler_name = named.sampler.name if named.sampler else _sampler_of(named.cls)
        sampler_row = next((sampler for sampler in SAMPLERS if sampler.name == sampler_name), None)
        closest = fit.class_of(sampler_row) if sampler_row else None
        return f"scheduler {shown!r} does not fit {model}; choose one of {names}.", closest
    if nearest is not None:
        text = f"scheduler {shown!r} is none that diffusers has; the nearest to it is {nearest}. {model} takes {names}."
        return text, nearest if nearest in fit.names else None
    if read_schedule(name) or unserved_schedule(name):
        text = f"{shown!r} says where the steps are, not how they are made: send it as schedule, or behind a scheduler."
        return text, None
    spellings = [spelling for sampler in SAMPLERS if fit.class_of(sampler) for spelling in names_of(sampler)]
    closest = next(iter(difflib.get_close_matches(shown.lower(), [*spellings, *fit.names], n=1)), None)
    return f"scheduler {shown!r} is not known for {model}; choose one of {names}.", closest


def _sampler_of(cls: str | None) -> str | None:
    """Return the sampler that a class is, for any kind of model."""
    return next((sampler.name for sampler in SAMPLERS if cls in sampler.classes.values()), None)


def _one_schedule(implied: str | None, sent: JsonValue, name: str) -> JsonValue:
    """Return the schedule from the scheduler's name or from the field. Raises ParameterOutOfRange where they differ."""
    if implied is None or sent is None or read_schedule(str(sent)) == implied:
        return implied or sent
    raise ParameterOutOfRange(
        f"scheduler {name[:64]!r} says {implied} and schedule says {str(sent)[:32]}; send one of the two.",
        field="schedule",
    )


def _known_schedule(text: str, fit: Fit, model: str) -> str:
    """Return the schedule of this name. Raises ParameterOutOfRange."""
    schedule = read_schedule(text)
    if schedule is not None:
        return schedule
    names, closest = ", ".join(fit.schedules) or "none but its own", unserved_schedule(text)
    reason = f"is none that diffusers has; the nearest to it is {closest}. {model} takes {names}."
    reason = reason if closest else f"is not known for {model}; choose one of {names}."
    suggestions = [closest] if closest else difflib.get_close_matches(text.lower()[:40], fit.schedules, n=1)
    hint = f"Did you mean {suggestions[0]}?" if suggestions else None
    raise ParameterOutOfRange(f"schedule {text[:64]!r} {reason}", field="schedule", hint=hint)


def _schedule(schedule: str, cls: str | None, fit: Fit, model: str) -> Options:
    """Return the options by which `cls` follows `schedule`. Raises ParameterOutOfRange."""
    schedules = fit.schedules_of(cls)
    if schedule in schedules:
        return schedules[schedule]
    others = [sampler.name for sampler in SAMPLERS if schedule in fit.schedules_of(fit.class_of(sampler))]
    owner = cls or f"the scheduler of {model}"
    has = f"it has {', '.join(schedules)}" if schedules else "it has only its own"
    fix = f"; with {schedule}, {model} takes scheduler: {', '.join(others)}" if others else ""
    raise ParameterOutOfRange(f"schedule {schedule} is none of {owner}: {has}{fix}.", field="schedule")


def _check_lists(
    lists: list[str], params: Mapping[str, JsonValue], cls: str | None, schedule: JsonValue, fit: Fit
) -> Options:
    """Return the options that a list of the job's own needs over the config: no schedule may change its values.

    Raises ParameterOutOfRange.
    """
    if len(lists) > 1:
        raise ParameterOutOfRange("timesteps and sigmas say the same twice; send one of them.", field=lists[1])
    (name,) = lists
    if schedule is not None:
        raise ParameterOutOfRange(f"{name} and schedule {schedule} are two schedules; send one.", field=name)
    if cls is not None and name not in lists_of(cls, fit.noise):
        able = [other for other in fit.classes if name in lists_of(other, fit.noise)]
        fix = f"leave it out, or send scheduler: {', '.join(able)}" if able else "leave it out"
        raise ParameterOutOfRange(f"{name} cannot be given to {cls}, which this job draws with; {fix}.", field=name)
    _check_numbers(name, params[name], fit)
    return {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}


def _check_numbers(name: str, values: JsonValue, fit: Fit) -> None:
    """Refuse a list that does not fall, or that begins beyond the noise. Raises ParameterOutOfRange."""
    numbers = [value for value in values if isinstance(value, int | float)] if isinstance(values, list) else []
    if any(after >= before for before, after in pairwise(numbers)):
        raise ParameterOutOfRange(f"{name} must fall from each number to the next; sort it downwards.", field=name)
    if name == "timesteps" and numbers and fit.noise == "diffusion" and numbers[0] > 999:
        raise ParameterOutOfRange(f"timesteps begin at 999 at most; {numbers[0]} was sent.", field=name)


def _check_package(cls: str | None, name: str) -> None:
    row = CLASSES.get(cls or "")
    package = row.package if row else ""
    if package and find_spec(package) is None:
        raise ParameterOutOfRange(
            f"scheduler {name[:64]!r} needs the package {package}, which this worker lacks; "
            f"name another one, or let the operator install {package}.",
            field="scheduler",
        )


def native(model: Model) -> tuple[Noise | None, str | None]:
    """Return the kind of noise that the weights predict, and the model's own scheduler, as far as they are known."""
    row, detection = model.architecture, model.detection
    noise, scheduler = (row.noise, row.scheduler) if row else (None, None)
    if detection.prediction_type in ("edm", "edm_v_prediction"):
        return "edm", detection.scheduler
    if detection.scheduler is None:
        # A variant of few steps uses the scheduler that its authors publish, not its family's own.
        return noise, None if detection.variant and noise == "diffusion" else scheduler
    cls = CLASSES.get(detection.scheduler)
    if cls is None:
        return None, detection.scheduler
    flow = detection.prediction_type == "flow_prediction" or (noise == "flow" and "flow" in cls.noise)
    return "flow" if flow else cls.noise[0], detection.scheduler


def measured_pipelines() -> frozenset[str]:
    """Return the pipeline classes that were tried with every scheduler: all that this worker can run."""
    return frozenset(_measured())


@dataclass(frozen=True, slots=True)
class _Measured:
    noise: Noise
    classes: frozenset[str]
    shifting: frozenset[str]


@lru_cache(maxsize=1)
def _measured() -> Mapping[str, _Measured]:
    """Return the schedulers that each pipeline class was measured to run with, by class name."""
    groups = json.loads(FILE.read_text(encoding="utf-8"))["groups"]
    return {
        name: _Measured(group["noise"], frozenset(group["runs"]), frozenset(group["shifts"]))
        for group in groups
        for name in group["pipelines"]
    }
