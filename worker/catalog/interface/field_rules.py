"""The rules of which fields of a request for a model go together, task by task, as schemas."""

from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall, once
from worker.catalog.classes.annotations import Schema
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

ENVELOPE = ("action", "traceparent")  # fields of a request that no model gets


def rules(model: Model, properties: Mapping[str, Schema]) -> tuple[tuple[Schema, ...], tuple[Schema, ...]]:
    """Return the rules for every request with fields of `properties`, and those for one task, each as a schema."""
    by_task = {call.task: _rules_of(call, properties) for call in model.calls}
    first = by_task[model.tasks[0]] if model.tasks else []
    shared = tuple(one for one in first if all(one in task_rules for task_rules in by_task.values()))
    conditional = {task: [one for one in task_rules if one not in shared] for task, task_rules in by_task.items()}
    per_task: tuple[Schema, ...] = tuple(
        {"$comment": task.value, "if": _task_condition(task, model, properties), "then": both(*conditional[task])}
        for task in model.tasks
        if conditional[task]
    )
    return shared, per_task


@once
def with_controls(call: ModelCall) -> dict[str, Schema]:
    """Return the parameters of the classes that serve the call with controls, without those that the controls fill."""
    schemas: dict[str, Schema] = {}
    for row in controlled_rows(call):
        filled = {*control_call(row.pipeline)}
        candidates = parameters(call.as_class(row.pipeline))
        schemas |= {name: item for name, item in candidates.items() if name not in filled and name not in schemas}
    return schemas


def formats_of(calls: Collection[ModelCall]) -> tuple[Format, ...]:
    """Return the formats that the images or videos of `calls` can have."""
    videos = [call.makes_video for call in calls]
    formats = (*(() if videos and all(videos) else IMAGE_FORMATS), *(VIDEO_FORMATS if any(videos) else ()))
    return tuple(dict.fromkeys(formats))


def _task_condition(task: Task, model: Model, properties: Collection[str]) -> Schema:
    """Return the schema of the requests for `task`: they name it, or mean it by the media that they hold."""
    explicit: Schema = {"properties": {"task": {"const": task.value}}, "required": ["task"]}
    fields = _media_in(properties, model)
    inferred = clauses_of(fields, lambda chosen: model.infer_task(_ordered(chosen, fields)) is task)
    ways = [] if Clause((), ()) in inferred else [condition(inferred)]  # else every request means another task
    if "outpaint" in properties:  # margins mean inpainting, whatever else is sent
        inpaints = task is Task.INPAINTING
        ways = [*ways, sent("outpaint")] if inpaints else [both(left_out("outpaint"), way) for way in ways]
    return either(explicit, both(left_out("task"), either(*ways))) if ways else explicit


def _rules_of(call: ModelCall, properties: Mapping[str, Schema]) -> list[Schema]:
    """Return the rules for a request for the call's task."""
    schemas, offered = parameters(call), adapter_fields(call)
    requirements = [sent("prompt")] if "prompt" in needed_fields(call) else []
    requirements += _media_rules(call, properties)
    requirements += [left_out(name) for name in _unknown(call, properties)]
    requirements += [when(sent(own_name), name) for name, own_name in meanings(call).items()]
    requirements += _sampling_rules(call)
    if "refiner" in offered and (handed_over := [name for name in HANDED_OVER if name in schemas]):
        requirements.append(when(sent("refiner"), *handed_over))
    requirements += _control_rules(call)
    formats = formats_of([call])
    if formats != formats_of(call.model.calls):
        allowed: list[JsonValue] = [*formats, None]
        requirements.append({"properties": {"output": {"properties": {"format": {"enum": allowed}}}}})
    for name, item in schemas.items():
        if "default" in item and properties[name].get("default") != item["default"]:
            requirements.append({"properties": {name: {"default": item["default"]}}})
    return requirements


def _unknown(call: ModelCall, properties: Mapping[str, Schema]) -> list[str]:
    """Return those of `properties` that are for other tasks of the model."""
    taken = {*common_fields(), *ENVELOPE, *parameters(call), *with_controls(call), *_media_in(properties, call.model)}
    unknown = [name for name in properties if name not in taken]
    offered = adapter_fields(call)
    unknown += [name for name in all_adapter_fields() if name in properties and name not in offered]
    if "negative_prompt" in properties and not takes_negative_prompt(call):
        unknown.append("negative_prompt")
    return unknown


def _control_rules(call: ModelCall) -> list[Schema]:
    """Return the rules of the fields that go only with controls, or only without."""
    plain, controlled = parameters(call), with_controls(call)
    if not controlled:
        return []
    only_with, only_without = (
        [name for name in controlled if name not in plain],
        [name for name in plain if name not in controlled],
    )
    requirements = [when(left_out("controlnets"), *only_with)] if only_with else []
    requirements += [when(sent("controlnets"), *only_without)] if only_without else []
    if call.from_text:  # there is no other image that they could follow
        requirements.append({"properties": {"controlnets": {"$ref": "#/$defs/with_images"}}})
    return requirements


def _media_in(properties: Collection[str], model: Model) -> tuple[str, ...]:
    return tuple(name for name in model.media_fields if name in properties)


def _ordered(chosen: Collection[str], fields: Sequence[str]) -> tuple[str, ...]:
    """Return a set of fields in the order in which a request is read."""
    return tuple(name for name in fields if name in chosen)


def _spelling(properties: Collection[str]) -> Spelling:
    """Return the names by which media fields can be sent: `outpaint` stands in for a mask, which its margins make."""
    both_ways = "outpaint" in properties
    return lambda name: (name, "outpaint") if both_ways and name == "mask_image" else (name,)


def _media_rules(call: ModelCall, properties: Collection[str]) -> list[Schema]:
    fields = _media_in(properties, call.model)
    clauses = clauses_of(fields, lambda chosen: not call.media_faults(_ordered(chosen, fields)))
    requirements = []
    for clause in clauses:
        faults = call.media_faults(_ordered(clause.unsent, fields))
        blamed = (*faults.untaken, *(name for names in faults.crowded for name in names))
        requirements.append(rule(clause, None if clause.sent else blamed[0], _spelling(properties)))
    if "outpaint" in properties and call.task is Task.INPAINTING:
        requirements += [when(left_out("image"), "outpaint"), when(sent("mask_image"), "outpaint")]
    elif "outpaint" in properties:
        requirements.append(left_out("outpaint"))
    return requirements


def _sampling_rules(call: ModelCall) -> list[Schema]:
    fit, schemas = fit_of(call), parameters(call)
    none: list[JsonValue] = [None, *sorted(AUTOMATIC)]
    dependent = needs_scheduler(fit, defaults(call), schemas)
    requirements = [when(left_out("scheduler"), *dependent)] if dependent else []
    if "schedule" in schemas and not examples_of(call)["schedule"]:
        requirements.append({"if": left_out("scheduler"), "then": {"properties": {"schedule": {"enum": none}}}})
    lists = [name for name in LISTS if name in schemas]
    if len(lists) > 1:
        requirements.append(when(sent(lists[0]), *lists[1:]))
    if lists and "schedule" in schemas:
        requirements.append(
            when({"properties": {"schedule": {"not": {"enum": none}}}, "required": ["schedule"]}, *lists)
        )
    return requirements


@once
def examples_of(call: ModelCall) -> dict[str, tuple[str, ...]]:
    """Return the schedulers and schedules that need no other field."""
    return sampling_examples(fit_of(call), defaults(call))
