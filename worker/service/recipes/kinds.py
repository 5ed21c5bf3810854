"""Whether steps make images or videos, which their models say, and whether what refers to them takes that."""

from collections.abc import Mapping

from worker.catalog.classes.inputs import VIDEO_TASKS
from worker.catalog.operator_file import KeyPath
from worker.catalog.recipes.recipe import Recipe, RecipeStep
from worker.catalog.recipes.references import Part, StepReference, mentions
from worker.core.model import Task

_OF_VIDEO: tuple[Part, ...] = ("video", "frames")


def fault_of_kinds(recipe: Recipe, of_videos: Mapping[str, bool]) -> tuple[KeyPath, str] | None:
    """Return the place and the sentence about the first step that takes another kind than it is given; None if right.

    `of_videos` says of each step that is known whether its model makes videos.
    """
    moving = {
        step.name: of_videos[step.name] or step.frames_of is not None for step in recipe.steps if step.name in of_videos
    }
    for step in recipe.steps:
        if step.frames_of is not None and of_videos.get(step.name):
            return (
                "steps",
                step.name,
                "image",
            ), f"steps.{step.name} would make a video of each frame; give it one image."
        if (fault := _fault_of(step, moving)) is not None:
            return fault
    return _fault_of_outputs(recipe, moving)


def _fault_of_outputs(recipe: Recipe, moving: Mapping[str, bool]) -> tuple[KeyPath, str] | None:
    videos = [name for name in recipe.outputs if moving.get(name)]
    if videos and len(recipe.outputs) > 1:
        return ("outputs",), f"outputs: {videos[0]} makes a video, which comes back alone; name one step."
    if videos and recipe.task not in VIDEO_TASKS:
        nearest = Task.IMAGE_TO_VIDEO if recipe.task is Task.IMAGE_TO_IMAGE else Task.TEXT_TO_VIDEO
        return ("task",), f"{videos[0]} makes a video, and the task is {recipe.task}; write task: {nearest}."
    if not videos and recipe.task in VIDEO_TASKS and all(name in moving for name in recipe.outputs):
        return (
            "task",
        ), f"{recipe.outputs[0]} makes images, and the task is {recipe.task}; write task: image-to-image."
    return None


def _fault_of(step: RecipeStep, moving: Mapping[str, bool]) -> tuple[KeyPath, str] | None:
    for mention in mentions(dict(step.fields)):
        reference = mention.reference
        if not isinstance(reference, StepReference) or reference.part == "seed" or reference.step not in moving:
            continue
        keys: KeyPath = ("steps", step.name, *mention.path)
        place, name = ".".join(map(str, keys)), reference.step
        if moving[name] and reference.part not in _OF_VIDEO:
            return keys, f"{place}: {name} makes a video; write ${{steps.{name}.frames}}, or .video where one is taken."
        if not moving[name] and reference.part in _OF_VIDEO:
            return keys, f"{place}: {name} makes images and no video; write ${{steps.{name}.image}}."
    return None
