"""Send every field of a model's schema through its pipeline, and say which one it does not take."""

import asyncio
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.asking import perform
from tests.zoo.plain import save
from tests.zoo.recipe import Image, Mask, Recipe, Video, on_the_wire
from tests.zoo.served import ServedZoo, answered
from worker.catalog.call import Model
from worker.catalog.classes.inputs import FIELDS, VIDEO_TASKS
from worker.catalog.classes.tasks import FROM_TEXT
from worker.catalog.interface.field_rules import with_controls
from worker.catalog.interface.parameters import needed_fields, parameters
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.schedulers import SCHEDULES
from worker.core.errors import WorkerError
from worker.core.model import Task
from worker.service.accepting.inputs import sent_fields
from worker.wire.request import decode_generation

Fields = dict[str, Any]
# Said by `answers` itself in every request, or a matter of other tests: what needs files that fit, or a bucket.
_SAID = frozenset({"action", "traceparent", "model", "task", "prompt", "seed", "loras", "lightning"})
_SAID |= {"controlnets", "ip_adapters", "embeddings", "hypernetworks", "vae", "refiner", "upscale", "s3Config"}
# What moves the steps, two values each; as many steps as let them show.
_MOVED: Mapping[str, Sequence[Any]] = {
    "timesteps": ([900, 700, 500, 300], [990, 600, 400, 100]),
    "sigmas": ([1.0, 0.75, 0.5, 0.25], [1.0, 0.9, 0.4, 0.1]),
    "shift": (1.0, 7.0),
    "schedule": SCHEDULES,
}
_STEPS = 5
# Which schedulers take what one does not: "…; leave it out, or send scheduler: A, B."
_WITH = re.compile(r"scheduler: ([\w, ]+)\.$")
_COUNTS = {"num_frames", "video_length", "frames"}
_ids = itertools.count()


@dataclass
class Report:
    """What became of one class's fields: how many there are, in how many runs they were sent, and what failed."""

    pipeline: str
    fields: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


def check_fields(zoo: ServedZoo, recipe: Recipe, folder: Path) -> Report:
    """Try all fields of the schema of the recipe's repository, which is made if it is not there yet."""
    if not (folder / "model_index.json").exists():
        save(recipe, folder)
    return asyncio.run(_Walk(zoo, recipe, folder).walk())


class _Walk:
    """One class's schema, walked task by task."""

    def __init__(self, zoo: ServedZoo, recipe: Recipe, folder: Path) -> None:
        self.worker, self.recipe, self.folder = zoo.worker, recipe, folder
        self.model = f"file:{folder}"
        self.report = Report(recipe.pipeline)
        self.known: Model = self.worker.resolver.known(self.worker.resolver.resolve(self.model))

    async def walk(self) -> Report:
        schema = await perform(self.worker, {"action": "schema", "model": self.model}, "schema", _silent)
        properties: Mapping[str, Any] = schema["properties"]
        self.report.fields = len(properties)
        tasks = [Task(name) for name in properties["task"]["enum"] if name is not None]
        # What only a class with controls takes is sent in tests/zoo/test_controlled.py.
        beside = set().union(*(with_controls(self.known.call(task)) for task in tasks))
        beside -= set().union(*(parameters(self.known.call(task)) for task in tasks))
        left = set(properties) - _SAID - beside
        own = self.recipe.fields()
        request = decode_generation({"model": self.model, **own})
        usual = self.known.infer_task(sent_fields(request, self.known))
        for task in sorted(tasks, key=lambda task: task != usual):
            base = own if task == usual else self._start(task, own)
            taken = self._taken(task)
            if Task.VIDEO_TO_VIDEO in tasks and task is Task.IMAGE_TO_VIDEO:
                taken -= {"video"}  # one or the other
            values = {name: self._value(name, properties[name], task) for name in sorted((taken & left) - base.keys())}
            problem = await self._fails(task, base)
            if problem is not None:
                self.report.problems.append(f"{task}: the plain request fails: {problem}")
                continue
            left -= taken | base.keys()
            for name in self._media(task) & values.keys():
                value, rest = values.pop(name), self._without_siblings(task, base, name)
                given = [base[other] for other in base.keys() - rest.keys() if other != "mask_image"]
                await self._bisect(task, rest, {name: value if name == "outpaint" else next(iter(given), value)})
            for name in [name for name in _MOVED if name in values]:
                del values[name]
                await self._sampling(task, base, name, properties[name].get("examples"))
            await self._bisect(task, base, values)
        self.report.problems += [f"{name}: no task takes it" for name in sorted(left)]
        return self.report

    def _slots(self, task: Task) -> list[set[str]]:
        """For every parameter that takes media the fields that can fill it."""
        slots = self.known.call(task).slots
        named = {slot.parameter for slot in slots}
        found = [
            {slot.parameter, *(name for name in slot.fields if name not in named)}
            for slot in slots
            if task not in FROM_TEXT or not slot.fields
        ]
        # Margins make a mask: two ways to say one thing.
        return [
            names | ({"outpaint"} if task is Task.INPAINTING and "mask_image" in names else set()) for names in found
        ]

    def _media(self, task: Task) -> set[str]:
        return set().union(*self._slots(task))

    def _taken(self, task: Task) -> set[str]:
        """The fields that the schema has for the sake of `task`."""
        own = parameters(self.known.call(task))
        return self._media(task) | set(own) | (set(common_fields()) - {*FIELDS, "outpaint"})

    def _without_siblings(self, task: Task, base: Fields, name: str) -> Fields:
        """`base` without what fills the same parameter as `name`: as one list they would be too many."""
        siblings = set().union(*(slot for slot in self._slots(task) if name in slot))
        return {other: value for other, value in base.items() if other not in siblings}

    async def _sampling(self, task: Task, base: Fields, name: str, examples: Sequence[Any] | None) -> None:
        """Where the steps are: every example as it is, any other value with all schedulers that are named for it.

        At least one is drawn, and they do not all draw the same.
        """
        if "num_inference_steps" in parameters(self.known.call(task)):
            base = base | {"num_inference_steps": _STEPS}
        tried: list[tuple[str, str, np.ndarray | str]] = []  # what was said, whose scheduler it was, what came of it
        for value in examples or _MOVED[name]:
            said, told = base | {name: value}, f"{name} = {_short(value)}"
            found = await self._drawn(task, said)
            tried.append((told, "its own", found))
            for scheduler in schedulers_in(found) if isinstance(found, str) and not examples else ():
                tried.append((told, scheduler, await self._drawn(task, said | {"scheduler": scheduler})))
        images: dict[str, list[np.ndarray]] = {}
        for _, scheduler, found in tried:
            if isinstance(found, np.ndarray):
                images.setdefault(scheduler, []).append(found)
        for told, scheduler, found in tried:
            # Its own may refuse what another takes, but no example.
            if isinstance(found, str) and (examples or not images or scheduler != "its own"):
                self.report.problems.append(f"{task}: {told} with {scheduler}: {found}")
        for scheduler, (first, *others) in images.items():
            if others and np.ptp(first) and all(np.array_equal(first, other) for other in others):
                self.report.problems.append(f"{task}: {name} changes nothing with {scheduler}")

    def _start(self, task: Task, own: Fields) -> Fields:
        """A request for another task of the same model than the recipe's."""
        taken = parameters(self.known.call(task))
        kept = {name: value for name, value in own.items() if name in taken or name in ("prompt", "negative_prompt")}
        needed = {name: _image(name) for name in needed_fields(self.known.call(task)) if name != "prompt"}
        redrawn = {"strength": 1.0} if "strength" in taken else {}
        return {"prompt": "a red apple", **redrawn, **kept, **on_the_wire(needed)}

    def _value(self, name: str, schema: Mapping[str, Any], task: Task) -> Any:
        if name in self.recipe.values:
            return on_the_wire(self.recipe.values[name])
        if name in _COUNTS and _COUNTS & self.recipe.request.keys():
            return None  # another name for what the recipe says
        if name == "outpaint":
            return {"left": 64}
        if name in self._media(task):
            return on_the_wire(_image(name))
        if name == "scheduler":
            return self._own_scheduler()
        if name == "output":
            moving = self.known.call(task).makes_video
            return {"format": "webp" if moving or task in VIDEO_TASKS else "jpeg", "quality": 80, "metadata": True}
        return value_for(name, schema)

    def _own_scheduler(self) -> str | None:
        index = json.loads((self.folder / "model_index.json").read_text())
        return (index.get("scheduler") or [None, None])[1]

    async def _bisect(self, task: Task, base: Fields, more: Fields) -> None:
        """Send `more` in one request; where that fails, in two."""
        if not more:
            return
        problem = await self._fails(task, base | more)
        if problem is None:
            return
        if len(more) == 1:
            self.report.problems.append(f"{task}: {next(iter(more))} = {_short(more)}: {problem}")
            return
        names = [*more]
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            await self._bisect(task, base, {name: more[name] for name in half})

    async def _fails(self, task: Task, fields: Fields) -> str | None:
        found = await self._drawn(task, fields)
        return found if isinstance(found, str) else None

    async def _drawn(self, task: Task, fields: Fields) -> np.ndarray | str:
        """What is drawn of a request, or why nothing is."""
        self.report.runs += 1
        payload = {"seed": 0, "output": {"format": "webp"}, **fields, "model": self.model, "task": task.value}
        try:
            answer = await perform(self.worker, payload, f"field-{next(_ids)}", _silent)
        except WorkerError as error:
            return f"{error.code} ({error.field}): {error.message}"
        return answered(answer)


def schedulers_in(refusal: str) -> list[str]:
    """The schedulers that a refusal names as those that would do."""
    found = _WITH.search(refusal)
    return re.split(", | or ", found[1]) if found else []


_FITTING = {"strength": 1.0, "timeout_s": 300, "arm": "candidate"}


def value_for(name: str, schema: Mapping[str, Any]) -> Any:
    """A valid value of a property: an example, another one than the default, or what stands in the middle."""
    if name in _FITTING:
        return _FITTING[name]
    members = [member for member in schema.get("anyOf", ()) if member.get("type") != "null"]
    if members:
        shared = {key: schema[key] for key in ("default", "examples") if schema.get(key) is not None}
        return value_for(name, members[0] | shared)
    if schema.get("examples"):
        return schema["examples"][0]
    kinds = schema.get("type")
    default, kind = schema.get("default"), kinds if isinstance(kinds, str) else next(iter(kinds or ()), None)
    if "enum" in schema:
        return [value for value in schema["enum"] if value is not None][-1]
    if kind == "boolean":
        return not default
    if kind == "array":
        return default or [value_for(name, schema["items"])] * schema.get("minItems", 1)
    if default is not None:
        return default
    if kind in ("integer", "number"):
        low, high, step = schema.get("minimum", 1), schema.get("maximum", 1), schema.get("multipleOf", 1)
        middle = min(max(1, low), high)
        return -(-middle // step) * step if kind == "integer" else middle
    return "a red apple"


def _image(name: str) -> Any:
    if "mask" in name and "video" not in name:
        return Mask()
    return Video(5) if "video" in name or name in ("conditioning_frames", "controls") else Image()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 120 else f"{text[:117]}..."


def _silent(progress: object) -> None:
    pass
