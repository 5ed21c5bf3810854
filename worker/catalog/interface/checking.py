"""The check of a caller's parameters against the model's: effective values, or a sentence that names the field."""

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.annotations import Schema
from worker.catalog.classes.signatures import DENIED, regenerates_by_strength
from worker.catalog.interface import sampling
from worker.catalog.interface.bounds import BOUNDS
from worker.catalog.interface.parameters import (
    REQUEST_DEFAULTS,
    by_meaning,
    defaults,
    effective_defaults,
    meanings,
    parameters,
)
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.sizes import image_limit, size_bounds
from worker.catalog.interface.values import check_value, plain_value
from worker.core.errors import ParameterOutOfRange, UnknownParameter
from worker.core.model import ModelSpec, Task

_INSTEAD = {"generator": "seed", "latents": "image", "output_type": "output", "prompt_embeds": "prompt"}


def check_parameters(
    raw: Mapping[str, JsonValue], call: ModelCall, *, max_images: int, aliases: Collection[str] = ()
) -> dict[str, JsonValue]:
    """Return the effective parameters: `raw`, checked against the call's schema, on top of its defaults.

    Raises UnknownParameter or ParameterOutOfRange, naming the field. `aliases` only widen the "did you mean".
    """
    properties = dict(parameters(call))
    properties["num_images"] = {**properties["num_images"], "maximum": image_limit(call.spec, max_images)}
    for name in raw:
        if name not in properties:
            raise unsupported(str(name), call, aliases=aliases)
    sent = {name: plain_value(value, properties[name]) for name, value in raw.items()}
    checked = {name: check_value(name, value, properties[name]) for name, value in sent.items()}
    own_names = meanings(call)
    for name, own_name in own_names.items():
        if {name, own_name} <= checked.keys():
            family = call.architecture.title if call.architecture else call.spec.id
            raise ParameterOutOfRange(f"{name} means {own_name} for {family}; send one of the two.", field=name)
    merged = defaults(call) | by_meaning(checked, own_names)
    if isinstance(sigmas := merged.get("sigmas"), list) and "num_inference_steps" in properties:
        merged["num_inference_steps"] = len(sigmas)  # some pipelines compare the two, and most replace it
    _check_together(effective_defaults(properties, ("strength", *call.row.step_places)) | merged, call)
    effective = effective_defaults(properties, [*properties]) | merged
    _check_windows(effective)
    _check_companions(effective, call)
    return merged | _unset_of_two_steps(merged, call)


def check_defaults(spec: ModelSpec) -> None:
    """Check the model's own `defaults` as if a request had sent them, so that a bad registry fails at start.

    Raises UnknownParameter or ParameterOutOfRange.
    """
    model = Model.declared(spec)
    calls = [model.call(task) for task in model.tasks or (Task.TEXT_TO_IMAGE,)]
    row = model.architecture
    merged: dict[str, Schema] = {}
    for call in calls:
        merged |= parameters(call)
    # Without a family or without diffusers the pipeline's further names are unknown.
    complete = any(call.signature for call in calls)
    for name, value in {**spec.defaults, **(spec.lightning.defaults if spec.lightning else {})}.items():
        if name in REQUEST_DEFAULTS:
            check_value(name, value, {"type": "string"})
        elif row is None and name in ("width", "height"):
            check_value(name, value, {"type": "integer", "minimum": 1})
        elif name in merged and name != "num_images":
            check_value(name, value, merged[name])
        elif complete or _closest(name, merged):
            raise unsupported(name, calls[0])
    if row is not None:
        _check_whole(calls, spec.id)


def with_defaults(spec: ModelSpec, values: Mapping[str, JsonValue]) -> ModelSpec:
    """Return `spec` with `values` as its defaults, in place of those that mean the same. Raises as check_defaults."""
    guidances = {row.guidance for row in ARCHITECTURES} if "guidance_scale" in values else set()
    kept = {name: value for name, value in spec.defaults.items() if name not in guidances}
    changed = spec.model_copy(update={"defaults": kept | dict(values)})
    check_defaults(changed)
    return changed


def _check_whole(calls: Sequence[ModelCall], model: str) -> None:
    """Check a request without any parameter: a default size over max_pixels would have every request refused."""
    for call in calls:
        params = check_parameters({}, call, max_images=1)
        sampling.choose(params, params, sampling.fit_of(call), model)


def unsupported(name: str, call: ModelCall, *, aliases: Collection[str] = ()) -> UnknownParameter:
    """Return the error for a field that the call does not take, with the reason and the fix."""
    name = name[:64]
    shown = json.dumps(name)[1:-1] or "an empty name"
    media = [slot.parameter for slot in call.slots]
    guess = _closest(name, [*parameters(call), *media, *common_fields(), *aliases])
    hint = f"Did you mean {guess}?" if guess not in (None, name) else None
    return UnknownParameter(_reason(name, shown, guess, call), field=shown, hint=hint)


def _reason(name: str, shown: str, guess: str | None, call: ModelCall) -> str:
    """Return the reason why the call does not take `name`, and the fix; `guess` is a close name that it takes."""
    row, properties = call.architecture, parameters(call)
    family = f"{call.spec.id} ({row.title})" if row else call.spec.id
    elsewhere = [other.task for other in call.others if name in parameters(other)]
    if elsewhere:
        fix = "send an image" if call.from_text else "send no image"
        text = f"{shown} is not a parameter of {call.task} by {family}, only of {' and '.join(elsewhere)}"
        return f"{text}; leave {shown} out, or {fix}."
    if name == "strength" and call.from_text:
        return f"strength is not a parameter of {call.task} by {family}: it needs an input image; leave it out."
    if name in ("guidance_scale", "true_cfg_scale") and row is not None and row.guidance in properties:
        return f"{name} is not a parameter of {family}; send {row.guidance} instead."
    return _reason_for_any_task(name, shown, guess, call, family)


def _reason_for_any_task(name: str, shown: str, guess: str | None, call: ModelCall, family: str) -> str:
    """Return the reason and the fix where the task does not matter."""
    if name in _INSTEAD:
        return f"{name} is set by the worker and cannot be sent to {family}; send {_INSTEAD[name]} instead."
    if DENIED.fullmatch(name) and name not in common_fields() and guess is None:
        return f"{shown} is set by the worker and cannot be sent to {family}; leave it out."
    if name in BOUNDS or name in common_fields() or name in ("negative_prompt", "prompt_weighting"):
        return f"{name} is a parameter of other model families, not of {family}; leave it out."
    text = f"{shown} is not a parameter of {call.task} by {family}"
    return f"{text}; did you mean {guess}?" if guess is not None else f"{text}; it takes {', '.join(parameters(call))}."


def _closest(name: str, candidates: Iterable[str]) -> str | None:
    names, wanted = list(candidates), name[:64].lower()
    extended = [full for full in names if len(wanted) >= 3 and full.startswith(wanted)]
    return next(iter(difflib.get_close_matches(wanted, names, n=1, cutoff=0.7) or extended), None)


def _check_together(merged: Mapping[str, JsonValue], call: ModelCall) -> None:
    """Check the bounds that concern several fields together."""
    width, height, limit = merged.get("width"), merged.get("height"), size_bounds(call.model).max_pixels
    if isinstance(width, int) and isinstance(height, int) and width * height > limit:
        text = f"width x height must be at most {limit:,} pixels; {width} x {height} is {width * height:,}"
        raise ParameterOutOfRange(f"{text}: lower width or height.", field="width", details={"max_pixels": limit})
    schedule = merged.get("timesteps") or merged.get("sigmas")
    steps = len(schedule) if isinstance(schedule, list) else merged.get("num_inference_steps")
    strength = merged.get("strength")
    _check_original(merged.get("original_inference_steps"), steps, 1.0 if strength is None else strength)
    _check_each_step(merged.get("guidance_schedule"), steps)
    _check_lengthened(merged, call)
    _check_blocks(merged, call)
    _check_step_places(merged, call, steps)
    for name, default in call.row.shares.items():
        share = merged.get(name)
        _check_share(name, default if share is None else share, steps)
    if not (isinstance(steps, int) and isinstance(strength, int | float)) or int(steps * strength) >= 1:
        return
    # 0 asks for the input unchanged: only an upscaler has nothing to return then.
    if regenerates_by_strength(call.pipeline) and (strength > 0 or call.task is Task.UPSCALING):
        _check_share("strength", strength, steps)


def _check_each_step(guidance: JsonValue, steps: JsonValue) -> None:
    """Check that guidance which is named for each step is named for all."""
    if isinstance(guidance, list) and isinstance(steps, int) and len(guidance) != steps:
        text = f"guidance_schedule must have as many numbers as there are steps, {steps}; it has {len(guidance)}"
        raise ParameterOutOfRange(f"{text}: send as many, or guidance_scale.", field="guidance_schedule")


def _check_lengthened(merged: Mapping[str, JsonValue], call: ModelCall) -> None:
    """Check that a video which continues another one goes on after the frames that both share."""
    shared, frames, step = merged.get("overlap_history"), merged.get("num_frames"), call.row.frame_grid.step
    if not (call.row.lengthens and isinstance(shared, int) and isinstance(frames, int)):
        return
    least = (-(-shared // step)) * step + 1
    if frames < least:
        text = f"num_frames must be at least {least} with an overlap_history of {shared}; {frames} was sent"
        raise ParameterOutOfRange(f"{text}: raise it, or lower overlap_history.", field="num_frames")


def _check_blocks(merged: Mapping[str, JsonValue], call: ModelCall) -> None:
    """Check that a video has a block of latent frames, where it is generated block by block."""
    block, frames = merged.get("causal_block_size"), merged.get("num_frames")
    if not (isinstance(block, int) and isinstance(frames, int)):
        return
    latent = (frames - 1) // call.row.frame_grid.step + 1
    if block > latent:
        text = f"causal_block_size must be at most {latent}, the latent frames of num_frames {frames}; {block} was sent"
        raise ParameterOutOfRange(f"{text}: lower it, or raise num_frames.", field="causal_block_size")


def _check_step_places(merged: Mapping[str, JsonValue], call: ModelCall, steps: JsonValue) -> None:
    """Check that a step which is named by its place is one of the steps."""
    for name in call.row.step_places:
        place = merged.get(name)
        if isinstance(place, int) and isinstance(steps, int) and place >= steps:
            text = f"{name} must be less than num_inference_steps, {steps}; it is {place}"
            raise ParameterOutOfRange(f"{text}: send a smaller one, or more steps.", field=name)


def _check_companions(values: Mapping[str, JsonValue], call: ModelCall) -> None:
    """Refuse a parameter that the pipeline fails on without another one."""
    for name, companion in call.row.companions.items():
        beside = values.get(companion.parameter)
        least = companion.least
        given = bool(beside) if least is None else isinstance(beside, int | float) and beside >= least
        if values.get(name) and not given:
            wanted = companion.parameter if least is None else f"{companion.parameter} of at least {least:g}"
            raise ParameterOutOfRange(
                f"{name} needs {wanted} beside it; {json.dumps(beside)} was sent: send one, or leave {name} out.",
                field=name,
            )


def _check_share(name: str, share: JsonValue, steps: JsonValue) -> None:
    """Check that a share of the steps is one step at least."""
    if not (isinstance(share, int | float) and isinstance(steps, int)) or int(steps * share) >= 1:
        return
    text = f"{name} x num_inference_steps must be at least 1; {share} x {steps} leaves no step to run"
    raise ParameterOutOfRange(f"{text}: raise one of them.", field=name)


def _check_original(original: JsonValue, steps: JsonValue, strength: JsonValue) -> None:
    """Check that a consistency model has enough steps of its teacher to choose its own from."""
    if not (isinstance(original, int) and isinstance(steps, int) and isinstance(strength, int | float)):
        return
    if int(original * strength) < steps:
        text = f"original_inference_steps x strength must be at least {steps}, num_inference_steps"
        raise ParameterOutOfRange(
            f"{text}; {original} x {strength:g} is less: raise it.", field="original_inference_steps"
        )


def _unset_of_two_steps(merged: Mapping[str, JsonValue], call: ModelCall) -> dict[str, JsonValue]:
    """Return what only a call of two steps takes as unset for any other; what was sent of it is refused."""
    if merged.get("num_inference_steps", 2) == 2:
        return {}
    for name in sorted(call.row.of_two_steps):
        if merged.get(name) is not None:
            raise ParameterOutOfRange(
                f"{name} is for two steps; {merged['num_inference_steps']} were sent: leave it out, or send "
                "num_inference_steps: 2.",
                field=name,
            )
    return dict.fromkeys(call.row.of_two_steps)


def _check_windows(values: Mapping[str, JsonValue]) -> None:
    """Refuse a window of the steps, `…_start` to `…_end`, that ends before it begins."""
    for name, start in values.items():
        end = values.get(f"{name.removesuffix('_start')}_end") if name.endswith("_start") else None
        for first, last in zip(_numbers(start), _numbers(end), strict=False):
            if first >= last:
                raise ParameterOutOfRange(
                    f"{name} must be less than its end; {first:g} and {last:g} were sent: lower {name}.", field=name
                )


def _numbers(value: JsonValue) -> list[int | float]:
    listed = value if isinstance(value, list) else [value]
    return [number for number in listed if isinstance(number, int | float)]
