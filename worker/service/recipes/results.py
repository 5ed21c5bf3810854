"""The result of a recipe: the images of its outputs, the sums of what its steps took, and a report of each step."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import TypeVar

from pydantic import JsonValue

from worker.catalog.recipes.recipe import MEDIA, Recipe, RecipeStep
from worker.core.model import Task
from worker.core.request import GenerationRequest
from worker.core.result import Artifact, EncodedArtifact, JobFacts, JobResult, Reproduction, StepReport, Timings, Usage
from worker.service.local.results import MAX_ECHO_CHARS

_NO_MEDIA = "reproduce.input leaves out {}, which is large; send it along to get the same result again."
_EXACT_ONLY = "The images came as png: a further step of the recipe begins from them."
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finished:
    """A step that was run: its result, and the seconds that all of it took."""

    step: RecipeStep
    result: JobResult
    seconds: float


def result_of(
    recipe: Recipe, request: GenerationRequest, inputs: Mapping[str, JsonValue], finished: Sequence[Finished]
) -> JobResult:
    """Return the result of the steps that are `finished`: of all, or of those so far, which end in the last one.

    The seed of each image is the recipe's: it gives the same image again. The steps' own are in their reports.
    """
    results = [each.result for each in finished]
    outputs = _outputs(recipe, finished)
    last = outputs[-1]
    artifacts = _artifacts(outputs, request.seed or 0)
    large = {name for name, value in inputs.items() if len(str(value)) > MAX_ECHO_CHARS}
    return JobResult(
        artifacts=artifacts,  # type: ignore[arg-type]  # of one backend: all of one kind
        model=recipe.id,
        revision=None,
        task=recipe.task,
        prompt=request.prompt or last.prompt,
        parameters={**_words(recipe, inputs), "width": artifacts[0].width, "height": artifacts[0].height},
        loras=_all(result.loras for result in results),
        adapters=_all(result.adapters for result in results),
        safety=_all(result.safety for result in outputs),
        timings=_timings(results),
        usage=_usage(results, len(artifacts)),
        reproduce=Reproduction(
            model=f"{recipe.id}#{recipe.digest}",
            loras=tuple(dict.fromkeys(_all(result.reproduce.loras for result in results))),
            versions=last.reproduce.versions,
            input=_input(recipe, request, inputs, large),
        ),
        mask=last.mask,
        warnings=_warnings(request, artifacts, finished, large),
        placement=last.placement,
        quality=last.quality,
        levers=tuple(dict.fromkeys(_all(result.levers for result in results))),
        steps=tuple(_report(each) for each in finished),
    )


def joined(results: Sequence[JobResult], artifact: Artifact, notes: tuple[str, ...]) -> JobResult:
    """Return the result of a step whose one image several jobs made: what they took, and what all of them are."""
    verdicts = [verdict for result in results for verdict in result.safety]
    worst = max(verdicts, key=lambda each: (each.flagged, each.score), default=None)
    return replace(
        results[-1],
        artifacts=(artifact,),
        safety=() if worst is None else (worst,),
        timings=_timings(results),
        usage=_usage(results, 1),
        warnings=tuple(dict.fromkeys([*_all(result.warnings for result in results), *notes])),
        levers=tuple(dict.fromkeys(_all(result.levers for result in results))),
    )


def untouched(model: str, request: GenerationRequest, artifact: Artifact, note: str) -> JobResult:
    """Return the result of a step that had nothing to do."""
    return JobResult(
        artifacts=(artifact,),
        model=model,
        revision=None,
        task=Task.INPAINTING,
        prompt=request.prompt or "",
        parameters={},
        loras=(),
        timings=Timings(),
        usage=Usage(gpu_seconds=0.0, images=1, pixel_steps=0, peak_memory_gb=0.0, bytes_downloaded=0),
        reproduce=Reproduction(model=model, loras=(), versions={}, input={}),
        warnings=(note,),
    )


def _all(parts: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(chain.from_iterable(parts))


def _warnings(
    request: GenerationRequest,
    artifacts: Sequence[Artifact | EncodedArtifact],
    finished: Sequence[Finished],
    large: Collection[str],
) -> tuple[str, ...]:
    """Return the warnings of all steps, each with its step's name, and those of the whole."""
    warnings = [f"{each.step.name}: {warning}" for each in finished for warning in each.result.warnings]
    wanted = request.output.format
    came = {file.format for item in artifacts if isinstance(item, EncodedArtifact) for file in item.files}
    if wanted is not None and came - {wanted}:
        warnings.append(_EXACT_ONLY)
    if large:
        warnings.append(_NO_MEDIA.format(" and ".join(sorted(large))))
    return tuple(dict.fromkeys(warnings))


def _outputs(recipe: Recipe, finished: Sequence[Finished]) -> list[JobResult]:
    named = [each.result for each in finished if each.step.name in recipe.outputs]
    return named or [finished[-1].result]


def _artifacts(results: Sequence[JobResult], seed: int) -> tuple[Artifact | EncodedArtifact, ...]:
    return tuple(replace(item, seed=seed) for result in results for item in result.artifacts)


def _words(recipe: Recipe, inputs: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the inputs that are no images or videos."""
    return {name: value for name, value in inputs.items() if recipe.inputs[name].type not in MEDIA}


def _report(each: Finished) -> StepReport:
    facts = JobFacts(**{field.name: getattr(each.result, field.name) for field in fields(JobFacts)})
    return StepReport(each.step.name, facts, tuple(item.seed for item in each.result.artifacts), each.seconds)


def _timings(results: Sequence[JobResult]) -> Timings:
    timings = [result.timings for result in results]
    return Timings(
        queue_s=sum(each.queue_s for each in timings),
        download_s=sum(each.download_s for each in timings),
        load_s=sum(each.load_s for each in timings),
        inference_s=sum(each.inference_s for each in timings),
        batch_size=max(each.batch_size for each in timings),
        stages=tuple(stage for each in timings for stage in each.stages),
    )


def _usage(results: Sequence[JobResult], images: int) -> Usage:
    usages = [result.usage for result in results]
    costs = [usage.cost_usd for usage in usages if usage.cost_usd is not None]
    return Usage(
        gpu_seconds=sum(usage.gpu_seconds for usage in usages),
        images=images,
        pixel_steps=sum(usage.pixel_steps for usage in usages),
        peak_memory_gb=max(usage.peak_memory_gb for usage in usages),
        bytes_downloaded=sum(usage.bytes_downloaded for usage in usages),
        cost_usd=sum(costs) if costs else None,
    )


def _input(
    recipe: Recipe, request: GenerationRequest, inputs: Mapping[str, JsonValue], large: Collection[str]
) -> dict[str, JsonValue]:
    """Return the input that gives the same images again, but for what is too large to be sent back."""
    kept = {name: value for name, value in inputs.items() if name not in large}
    whole: dict[str, JsonValue] = request.model_dump(
        mode="json", include={"seed", "quality", "fallback", "output"}, exclude_defaults=True
    )
    if isinstance(output := whole.get("output"), dict):
        output.pop("delivery", None)
        whole = whole if output else {name: value for name, value in whole.items() if name != "output"}
    return {"model": recipe.id, **kept, **whole}
