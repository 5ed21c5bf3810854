"""Which fields of a request for a model go together, task by task: the rules that refuse, asked and said as schemas."""

from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall, once
from worker.catalog.classes.signatures import Schema
from worker.catalog.interface.adapters import HANDED_OVER, adapter_fields, all_adapter_fields
from worker.catalog.interface.clauses import (
    Clause,
    Spelling,
    both,
    clauses_of,
    condition,
    either,
    left_out,
    rule,
    sent,
    when,
)
from worker.catalog.interface.controls import control_call, controlled_rows
from worker.catalog.interface.parameters import (
    defaults,
    meanings,
    needed_fields,
    parameters,
    takes_negative_prompt,
)
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.sampling import LISTS, fit_of, needs_scheduler, sampling_examples
from worker.catalog.samplers import AUTOMATIC
from worker.core.model import Task
from worker.core.request import IMAGE_FORMATS, VIDEO_FORMATS, Format

ENVELOPE = ("action", "traceparent")  # fields of a request that no model hears of


def rules(model: Model, properties: Mapping[str, Schema]) -> tuple[tuple[Schema, ...], tuple[Schema, ...]]:
    """What must be true of every request with fields of `properties`, and of those for one task, each as a schema."""
    by_task = {call.task: _rules_of(call, properties) for call in model.calls}
    first = by_task[model.tasks[0]] if model.tasks else []
    shared = tuple(one for one in first if all(one in found for found in by_task.values()))
    own = {task: [one for one in found if one not in shared] for task, found in by_task.items()}
    told: tuple[Schema, ...] = tuple(
        {"$comment": task.value, "if": _meant(task, model, properties), "then": both(*own[task])}
        for task in model.tasks
        if own[task]
    )
    return shared, told


@once
def with_controls(call: ModelCall) -> dict[str, Schema]:
    """The parameters of the classes that draw the same with controls, without those that the controls fill."""
    found: dict[str, Schema] = {}
    for row in controlled_rows(call):
        filled = {*control_call(row.pipeline)}
        own = parameters(call.as_class(row.pipeline))
        found |= {name: item for name, item in own.items() if name not in filled and name not in found}
    return found


def formats_of(calls: Collection[ModelCall]) -> tuple[Format, ...]:
    """The formats that what comes back of `calls` can have."""
    videos = [call.draws_video for call in calls]
    found = (*(() if videos and all(videos) else IMAGE_FORMATS), *(VIDEO_FORMATS if any(videos) else ()))
    return tuple(dict.fromkeys(found))


def _meant(task: Task, model: Model, properties: Collection[str]) -> Schema:
    """The schema of the requests for `task`: they say so, or mean it with the media that they hold."""
    said: Schema = {"properties": {"task": {"const": task.value}}, "required": ["task"]}
    fields = _media_in(properties, model)
    inferred = clauses_of(fields, lambda chosen: model.infer_task(_ordered(chosen, fields)) is task)
    ways = [] if Clause((), ()) in inferred else [condition(inferred)]  # or whatever is sent means another task
    if "outpaint" in properties:  # margins mean inpainting, whatever else is sent
        inpaints = task is Task.INPAINTING
        ways = [*ways, sent("outpaint")] if inpaints else [both(left_out("outpaint"), way) for way in ways]
    return either(said, both(left_out("task"), either(*ways))) if ways else said


def _rules_of(call: ModelCall, properties: Mapping[str, Schema]) -> list[Schema]:
    """What must be true of a request for the call's task."""
    own, offered = parameters(call), adapter_fields(call)
    found = [sent("prompt")] if "prompt" in needed_fields(call) else []
    found += _media_rules(call, properties)
    found += [left_out(name) for name in _unknown(call, properties)]
    found += [when(sent(meant), name) for name, meant in meanings(call).items()]
    found += _sampling_rules(call)
    if "refiner" in offered and (set_by_it := [name for name in HANDED_OVER if name in own]):
        found.append(when(sent("refiner"), *set_by_it))
    found += _control_rules(call)
    formats = formats_of([call])
    if formats != formats_of(call.model.calls):
        allowed: list[JsonValue] = [*formats, None]
        found.append({"properties": {"output": {"properties": {"format": {"enum": allowed}}}}})
    for name, item in own.items():
        if "default" in item and properties[name].get("default") != item["default"]:
            found.append({"properties": {name: {"default": item["default"]}}})
    return found


def _unknown(call: ModelCall, properties: Mapping[str, Schema]) -> list[str]:
    """Those of `properties` that are for other tasks of the model."""
    known = {*common_fields(), *ENVELOPE, *parameters(call), *with_controls(call), *_media_in(properties, call.model)}
    unknown = [name for name in properties if name not in known]
    offered = adapter_fields(call)
    unknown += [name for name in all_adapter_fields() if name in properties and name not in offered]
    if "negative_prompt" in properties and not takes_negative_prompt(call):
        unknown.append("negative_prompt")
    return unknown


def _control_rules(call: ModelCall) -> list[Schema]:
    """What goes with controls, or without."""
    own, controlled = parameters(call), with_controls(call)
    if not controlled:
        return []
    only_with, only_without = (
        [name for name in controlled if name not in own],
        [name for name in own if name not in controlled],
    )
    found = [when(left_out("controlnets"), *only_with)] if only_with else []
    found += [when(sent("controlnets"), *only_without)] if only_without else []
    if call.from_text:  # there is no other image that they could follow
        found.append({"properties": {"controlnets": {"$ref": "#/$defs/with_images"}}})
    return found


def _media_in(properties: Collection[str], model: Model) -> tuple[str, ...]:
    return tuple(name for name in model.media_fields if name in properties)


def _ordered(chosen: Collection[str], fields: Sequence[str]) -> tuple[str, ...]:
    """A set of fields in the order in which a request is read."""
    return tuple(name for name in fields if name in chosen)


def _spelling(properties: Collection[str]) -> Spelling:
    """How media fields can be sent: `outpaint` does for a mask, since its margins make one."""
    both_ways = "outpaint" in properties
    return lambda name: (name, "outpaint") if both_ways and name == "mask_image" else (name,)


def _media_rules(call: ModelCall, properties: Collection[str]) -> list[Schema]:
    fields = _media_in(properties, call.model)
    clauses = clauses_of(fields, lambda chosen: not call.media_faults(_ordered(chosen, fields)))
    found = []
    for clause in clauses:
        faults = call.media_faults(_ordered(clause.unsent, fields))
        blamed = (*faults.untaken, *(name for names in faults.crowded for name in names))
        found.append(rule(clause, None if clause.sent else blamed[0], _spelling(properties)))
    if "outpaint" in properties and call.task is Task.INPAINTING:
        found += [when(left_out("image"), "outpaint"), when(sent("mask_image"), "outpaint")]
    elif "outpaint" in properties:
        found.append(left_out("outpaint"))
    return found


def _sampling_rules(call: ModelCall) -> list[Schema]:
    fit, own = fit_of(call), parameters(call)
    none: list[JsonValue] = [None, *sorted(AUTOMATIC)]
    named = needs_scheduler(fit, defaults(call), own)
    found = [when(left_out("scheduler"), *named)] if named else []
    if "schedule" in own and not examples_of(call)["schedule"]:
        found.append({"if": left_out("scheduler"), "then": {"properties": {"schedule": {"enum": none}}}})
    lists = [name for name in LISTS if name in own]
    if len(lists) > 1:
        found.append(when(sent(lists[0]), *lists[1:]))
    if lists and "schedule" in own:
        found.append(when({"properties": {"schedule": {"not": {"enum": none}}}, "required": ["schedule"]}, *lists))
    return found


@once
def examples_of(call: ModelCall) -> dict[str, tuple[str, ...]]:
    """The schedulers and schedules that need nothing beside them."""
    return sampling_examples(fit_of(call), defaults(call))
