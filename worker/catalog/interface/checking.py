"""What a caller sent, checked against the model's parameters: effective values, or a sentence that names the field."""

import difflib
import json
from collections.abc import Collection, Iterable, Mapping

from pydantic import JsonValue

from worker.catalog.classes.signatures import DENIED, Schema, call_parameters, redraws_by_strength
from worker.catalog.classes.tasks import FROM_TEXT, media_slots
from worker.catalog.interface import sampling
from worker.catalog.interface.bounds import BOUNDS
from worker.catalog.interface.parameters import (
    COMMON,
    REQUEST_DEFAULTS,
    by_meaning,
    effective_defaults,
    meanings,
    model_defaults,
    parameters,
)
from worker.catalog.interface.sizes import size_bounds
from worker.catalog.interface.tasks import architecture_of, declared, pipeline_for, tasks_of
from worker.catalog.interface.values import check_value
from worker.core.errors import ParameterOutOfRange, UnknownParameter
from worker.core.model import Detection, ModelSpec, Task

_INSTEAD = {"generator": "seed", "latents": "image", "output_type": "output", "prompt_embeds": "prompt"}


def check_parameters(
    raw: Mapping[str, JsonValue],
    spec: ModelSpec,
    detection: Detection | None,
    task: Task,
    *,
    max_images: int,
    aliases: Collection[str] = (),
    lightning: bool = False,
) -> dict[str, JsonValue]:
    """The effective parameters: `raw` checked against the model's schema, on top of its defaults.

    Raises UnknownParameter or ParameterOutOfRange, naming the field. `aliases` only widen the "did you mean".
    """
    properties = parameters(spec, detection, task, max_images=max_images, lightning=lightning)
    for name in raw:
        if name not in properties:
            raise unsupported(str(name), spec, detection, task, aliases=aliases)
    checked = {name: check_value(name, value, properties[name]) for name, value in raw.items()}
    names = meanings(spec, detection, task)
    for name, own in names.items():
        if {name, own} <= checked.keys():
            raise ParameterOutOfRange(
                f"{name} means {own} for {_family(spec, detection)}; send one of the two.", field=name
            )
    defaults = effective_defaults(properties, model_defaults(spec, detection, task, lightning))
    merged = defaults | by_meaning(checked, names)
    if isinstance(sigmas := merged.get("sigmas"), list) and "num_inference_steps" in properties:
        merged["num_inference_steps"] = len(sigmas)  # which some pipelines compare, and most replace
    _check_together(effective_defaults(properties, ("strength",)) | merged, spec, detection, task)
    return merged


def check_defaults(spec: ModelSpec) -> None:
    """Raise what a request would raise if it sent the model's own `defaults`, so that a bad registry fails at start."""
    detection, tasks = declared(spec), tasks_of(spec, None) or (Task.TEXT_TO_IMAGE,)
    row = architecture_of(spec, None)
    merged: dict[str, Schema] = {}
    for task in tasks:
        merged |= parameters(spec, detection, task, max_images=1)
    # Without a family or without diffusers here nothing says which further names the pipeline takes.
    complete = any(call_parameters(pipeline_for(spec, detection, task) or "") for task in tasks)
    for name, value in {**spec.defaults, **(spec.lightning.defaults if spec.lightning else {})}.items():
        if name in REQUEST_DEFAULTS or (row is None and name in ("width", "height")):
            check_value(
                name, value, {"type": "string"} if name in REQUEST_DEFAULTS else {"type": "integer", "minimum": 1}
            )
        elif name in merged and name != "num_images":
            check_value(name, value, merged[name])
        elif complete or _near(name, merged):
            raise unsupported(name, spec, detection, tasks[0])
    for task in tasks if row else ():  # together, too: a size over max_pixels would refuse every request
        whole = check_parameters({}, spec, detection, task, max_images=1)
        sampling.choose(whole, whole, sampling.fit_of(spec, detection, task), spec.id)


def unsupported(
    name: str, spec: ModelSpec, detection: Detection | None, task: Task, *, aliases: Collection[str] = ()
) -> UnknownParameter:
    """The error for a field that this model does not take for `task`: why, and what to send instead."""
    name = name[:64]
    shown = json.dumps(name)[1:-1] or "an empty name"
    row = architecture_of(spec, detection)
    family = f"{spec.id} ({row.title})" if row else spec.id
    media = [slot.parameter for slot in media_slots(pipeline_for(spec, detection, task), task)]
    own = parameters(spec, detection, task, max_images=1)
    others = [other for other in tasks_of(spec, detection) if other is not task]
    elsewhere = [other for other in others if name in parameters(spec, detection, other, max_images=1)]
    near = _near(name, [*own, *media, *COMMON, *aliases])
    if elsewhere:
        text = f"{shown} is not a parameter of {task} by {family}, only of {' and '.join(elsewhere)}"
        fix = "send an image" if task in FROM_TEXT else "send no image"
        text += f"; leave {shown} out, or {fix}."
    elif name == "strength" and task in FROM_TEXT:
        text = f"strength is not a parameter of {task} by {family}: it needs an input image; leave it out."
    elif name in ("guidance_scale", "true_cfg_scale") and row is not None and row.guidance in own:
        text = f"{name} is not a parameter of {family}; send {row.guidance} instead."
    elif DENIED.fullmatch(name) and name not in COMMON and name not in _INSTEAD and near is None:
        text = f"{shown} is set by the worker and cannot be sent to {family}; leave it out."
    elif name in _INSTEAD:
        text = f"{name} is set by the worker and cannot be sent to {family}; send {_INSTEAD[name]} instead."
    elif name in BOUNDS or name in COMMON or name in ("negative_prompt", "prompt_weighting"):
        text = f"{name} is a parameter of other model families, not of {family}; leave it out."
    elif near is not None:
        text = f"{shown} is not a parameter of {task} by {family}; did you mean {near}?"
    else:
        text = f"{shown} is not a parameter of {task} by {family}; it takes {', '.join(own)}."
    return UnknownParameter(text, field=shown, hint=f"Did you mean {near}?" if near not in (None, name) else None)


def _family(spec: ModelSpec, detection: Detection | None) -> str:
    row = architecture_of(spec, detection)
    return row.title if row else spec.id


def _near(name: str, known: Iterable[str]) -> str | None:
    names, wanted = list(known), name[:64].lower()
    starts = [full for full in names if len(wanted) >= 3 and full.startswith(wanted)]
    return next(iter(difflib.get_close_matches(wanted, names, n=1, cutoff=0.7) or starts), None)


def _check_together(merged: Mapping[str, JsonValue], spec: ModelSpec, detection: Detection | None, task: Task) -> None:
    """Bounds that no single field has."""
    width, height, limit = merged.get("width"), merged.get("height"), size_bounds(spec, detection).max_pixels
    if isinstance(width, int) and isinstance(height, int) and width * height > limit:
        text = f"width x height must be at most {limit:,} pixels; {width} x {height} is {width * height:,}"
        raise ParameterOutOfRange(f"{text}: lower width or height.", field="width", details={"max_pixels": limit})
    schedule = merged.get("timesteps") or merged.get("sigmas")
    steps = len(schedule) if isinstance(schedule, list) else merged.get("num_inference_steps")
    strength = merged.get("strength")
    if not (isinstance(steps, int) and isinstance(strength, int | float)) or int(steps * strength) >= 1:
        return
    # 0 says plainly that nothing is to be redrawn, and only an upscaler has then nothing to give.
    if redraws_by_strength(pipeline_for(spec, detection, task)) and (strength > 0 or task is Task.UPSCALING):
        text = f"strength x num_inference_steps must be at least 1; {strength} x {steps} leaves no step to run"
        raise ParameterOutOfRange(f"{text}: raise one of them.", field="strength")
