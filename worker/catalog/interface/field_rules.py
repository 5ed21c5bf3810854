"""Which fields of a request for a model go together, task by task: the rules that refuse, asked and said as schemas."""

from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.classes.signatures import Schema
from worker.catalog.classes.tasks import FROM_TEXT, draws_video, media_faults
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
    COMMON,
    defaults,
    meanings,
    needed_fields,
    parameters,
    takes_negative_prompt,
)
from worker.catalog.interface.sampling import LISTS, fit_of, needs_scheduler, sampling_examples
from worker.catalog.interface.tasks import infer_task, media_fields, pipeline_for, tasks_of
from worker.catalog.samplers import AUTOMATIC
from worker.core.model import Detection, ModelSpec, Task
from worker.core.request import PICTURE_FORMATS, VIDEO_FORMATS, Format

ENVELOPE = ("action", "traceparent")  # fields of a request that no model hears of


def rules(
    spec: ModelSpec, detection: Detection | None, properties: Mapping[str, Schema], *, lightning: bool
) -> tuple[tuple[Schema, ...], tuple[Schema, ...]]:
    """What must be true of every request with fields of `properties`, and of those for one task, each as a schema."""
    tasks = tasks_of(spec, detection)
    by_task = {task: _rules_of(task, spec, detection, properties, lightning) for task in tasks}
    first = by_task[tasks[0]] if tasks else []
    shared = tuple(one for one in first if all(one in by_task[task] for task in tasks))
    own = {task: [one for one in found if one not in shared] for task, found in by_task.items()}
    told: tuple[Schema, ...] = tuple(
        {"$comment": task.value, "if": _meant(task, spec, detection, properties), "then": both(*own[task])}
        for task in tasks
        if own[task]
    )
    return shared, told


def with_controls(spec: ModelSpec, detection: Detection | None, task: Task) -> dict[str, Schema]:
    """The parameters of the classes that draw `task` with controls, without those that the controls fill."""
    found: dict[str, Schema] = {}
    for row in controlled_rows(spec, detection, task):
        called = spec.model_copy(update={"pipeline": row.pipeline, "tasks": (task,)})
        filled = {*control_call(row.pipeline)}
        own = parameters(called, detection, task, max_images=1)
        found |= {name: item for name, item in own.items() if name not in filled and name not in found}
    return found


def formats_of(spec: ModelSpec, detection: Detection | None, tasks: Sequence[Task]) -> tuple[Format, ...]:
    """The formats that what comes back of `tasks` can have."""
    videos = [draws_video(pipeline_for(spec, detection, task), task) for task in tasks]
    found = (*(() if videos and all(videos) else PICTURE_FORMATS), *(VIDEO_FORMATS if any(videos) else ()))
    return tuple(dict.fromkeys(found))


def _meant(task: Task, spec: ModelSpec, detection: Detection | None, properties: Collection[str]) -> Schema:
    """The schema of the requests for `task`: they say so, or mean it with the media that they hold."""
    said: Schema = {"properties": {"task": {"const": task.value}}, "required": ["task"]}
    fields = _media_in(properties, spec, detection)
    inferred = clauses_of(fields, lambda chosen: infer_task(spec, detection, _ordered(chosen, fields)) is task)
    ways = [] if Clause((), ()) in inferred else [condition(inferred)]  # or whatever is sent means another task
    if "outpaint" in properties:  # margins mean inpainting, whatever else is sent
        inpaints = task is Task.INPAINTING
        ways = [*ways, sent("outpaint")] if inpaints else [both(left_out("outpaint"), way) for way in ways]
    return either(said, both(left_out("task"), either(*ways))) if ways else said


def _rules_of(
    task: Task, spec: ModelSpec, detection: Detection | None, properties: Mapping[str, Schema], lightning: bool
) -> list[Schema]:
    """What must be true of a request for `task`."""
    own = parameters(spec, detection, task, max_images=1, lightning=lightning)
    controlled = with_controls(spec, detection, task)
    offered = adapter_fields(spec, detection, task)
    media = _media_in(properties, spec, detection)
    found = [sent("prompt")] if "prompt" in needed_fields(spec, detection, task) else []
    found += _media_rules(task, spec, detection, properties, media)
    unknown = [name for name in properties if name not in {*COMMON, *ENVELOPE, *own, *controlled, *media}]
    unknown += [name for name in all_adapter_fields() if name in properties and name not in offered]
    if "negative_prompt" in properties and not takes_negative_prompt(spec, detection, task):
        unknown.append("negative_prompt")
    found += [left_out(name) for name in unknown]
    found += [when(sent(meant), name) for name, meant in meanings(spec, detection, task).items()]
    found += _sampling_rules(spec, detection, task, own, lightning)
    if "refiner" in offered and (set_by_it := [name for name in HANDED_OVER if name in own]):
        found.append(when(sent("refiner"), *set_by_it))
    if controlled:
        only = [name for name in controlled if name not in own], [name for name in own if name not in controlled]
        found += [when(left_out("controlnets"), *only[0])] if only[0] else []
        found += [when(sent("controlnets"), *only[1])] if only[1] else []
    if controlled and task in FROM_TEXT:  # there is no other picture that they could follow
        found.append({"properties": {"controlnets": {"$ref": "#/$defs/with_pictures"}}})
    formats = formats_of(spec, detection, (task,))
    if formats != formats_of(spec, detection, tasks_of(spec, detection)):
        allowed: list[JsonValue] = [*formats, None]
        found.append({"properties": {"output": {"properties": {"format": {"enum": allowed}}}}})
    for name, item in own.items():
        if "default" in item and properties[name].get("default") != item["default"]:
            found.append({"properties": {name: {"default": item["default"]}}})
    return found


def _media_in(properties: Collection[str], spec: ModelSpec, detection: Detection | None) -> tuple[str, ...]:
    return tuple(name for name in media_fields(spec, detection) if name in properties)


def _ordered(chosen: Collection[str], fields: Sequence[str]) -> tuple[str, ...]:
    """A set of fields in the order in which a request is read."""
    return tuple(name for name in fields if name in chosen)


def _spelling(properties: Collection[str]) -> Spelling:
    """How media fields can be sent: `outpaint` does for a mask, since its margins make one."""
    both_ways = "outpaint" in properties
    return lambda name: (name, "outpaint") if both_ways and name == "mask_image" else (name,)


def _media_rules(
    task: Task, spec: ModelSpec, detection: Detection | None, properties: Collection[str], fields: Sequence[str]
) -> list[Schema]:
    pipeline = pipeline_for(spec, detection, task)
    clauses = clauses_of(fields, lambda chosen: not media_faults(pipeline, task, _ordered(chosen, fields)))
    found = []
    for clause in clauses:
        faults = media_faults(pipeline, task, _ordered(clause.unsent, fields))
        blamed = (*faults.untaken, *(name for names in faults.crowded for name in names))
        found.append(rule(clause, None if clause.sent else blamed[0], _spelling(properties)))
    if "outpaint" in properties and task is Task.INPAINTING:
        found += [when(left_out("image"), "outpaint"), when(sent("mask_image"), "outpaint")]
    elif "outpaint" in properties:
        found.append(left_out("outpaint"))
    return found


def _sampling_rules(
    spec: ModelSpec, detection: Detection | None, task: Task, own: Mapping[str, Schema], lightning: bool
) -> list[Schema]:
    fit, usual = fit_of(spec, detection, task), defaults(spec, detection, task, lightning=lightning)
    none: list[JsonValue] = [None, *sorted(AUTOMATIC)]
    named = needs_scheduler(fit, usual, own)
    found = [when(left_out("scheduler"), *named)] if named else []
    if "schedule" in own and not sampling_examples(fit, usual)["schedule"]:
        found.append({"if": left_out("scheduler"), "then": {"properties": {"schedule": {"enum": none}}}})
    lists = [name for name in LISTS if name in own]
    if len(lists) > 1:
        found.append(when(sent(lists[0]), *lists[1:]))
    if lists and "schedule" in own:
        found.append(when({"properties": {"schedule": {"not": {"enum": none}}}, "required": ["schedule"]}, *lists))
    return found
