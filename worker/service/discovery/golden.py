"""Golden prompts: what a newer version of a model makes of them beside what the present one does. It fetches and loads.

An operator asks for it before anything is served by the new version. The images stand in the answer and nowhere else.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from worker.catalog.versions import is_selector
from worker.core.errors import InvalidRequest, ModelNotFound, SourceUnavailable, UnsupportedModel
from worker.core.golden import GoldenComparison, GoldenImage, GoldenRequest
from worker.core.model import ModelSource, ModelSpec
from worker.core.request import GenerationRequest
from worker.core.result import Artifact, Emit, JobResult, Progress, Timings
from worker.core.turn import current
from worker.media.distance import distance
from worker.media.images import beside, encode
from worker.service.discovery.finder import Finder
from worker.service.discovery.updates import updated
from worker.service.generation import GenerationService
from worker.service.limits.pools import Pool
from worker.service.usage.telemetry import compared
from worker.service.versions.intervals import mean_interval

USUAL: Mapping[str, int] = {
    "a red apple on a white table": 1,
    "portrait photo of an old fisherman, natural light": 2,
    "a street in the rain at night, neon signs": 3,
    "a poster with the words GOOD MORNING": 4,
}
_SUBJECTS = 4  # of a model that knows only some
_QUALITY = 90


class Comparer(Protocol):
    """Compares the version that a model is served as with another one."""

    async def compare(self, request: GoldenRequest, job_id: str, emit: Emit, caller: str | None) -> GoldenComparison:
        """Generate every golden prompt by both versions."""
        ...


@dataclass(frozen=True, slots=True)
class GoldenComparer:
    """Compares the version that a model is served as with another one."""

    generation: GenerationService
    finder: Finder
    pool: Pool

    async def compare(self, request: GoldenRequest, job_id: str, emit: Emit, caller: str | None) -> GoldenComparison:
        """Generate every golden prompt by both versions.

        Raises ModelNotFound, InvalidRequest where nothing is newer, UnsupportedModel where the newer one does not run
        here, and whatever a job of either may.
        """
        resolver = self.generation.acceptor.resolver
        entry = resolver.registry.find(request.model)
        if entry is None:
            raise ModelNotFound(f"model {request.model[:120]!r} is not in models.yaml.", field="model")
        with self.generation.entered(caller):
            present = await self.pool.run(resolver.versions.of, entry.id)
            old = f"{entry.id}@{present.stable.name}" if present.stable else entry.id
            if request.version is not None:
                if not is_selector(request.version):
                    text = f"version must be v1, v2 …, stable or candidate; {request.version!r} was sent."
                    raise InvalidRequest(text, field="version")
                new = f"{entry.id}@{request.version}"
                await self.pool.run(resolver.resolve, new)  # before today's version has generated anything
                return await self._compared(entry, (old, new), (old, new), job_id, emit)
            spec, references = await self._newest(entry, caller)
            with self._named(spec) as new:
                return await self._compared(entry, (old, new), references, job_id, emit)

    async def _newest(self, entry: ModelSpec, caller: str | None) -> tuple[ModelSpec, tuple[str, str]]:
        """Return the entry at the newest version of its source, and the references of that in use and of the newest."""
        updates = await self.finder.updates(entry.id, caller)
        if updates.failed:
            raise SourceUnavailable(updates.failed[0][1], field="model")
        if updates.unseen:
            raise SourceUnavailable(f"The source of {entry.id} did not answer in time; ask again.", field="model")
        if not updates.updates:
            sentence = f"nothing is newer than what {entry.id} is served as; name a version to compare with."
            raise InvalidRequest(sentence, field="model")
        (update,) = updates.updates
        if update.obstacle is not None:
            raise UnsupportedModel(update.obstacle, field="model")
        new: ModelSource = await self.pool.run(self.finder.parse, update.new)
        return updated(entry, new), (update.old, update.new)

    @contextmanager
    def _named(self, spec: ModelSpec) -> Iterator[str]:
        with self.generation.acceptor.resolver.lent(spec) as name:
            yield name

    async def _compared(
        self, entry: ModelSpec, names: tuple[str, str], shown: tuple[str, str], job_id: str, emit: Emit
    ) -> GoldenComparison:
        golden = golden_of(entry)
        sides: list[list[JobResult]] = []
        for name in names:  # one after the other: each is loaded once
            results: list[JobResult] = []
            for prompt, seed in golden.items():
                current().stop.check()
                done = len(sides) * len(golden) + len(results)
                emit(Progress("inference", done, 2 * len(golden)))
                asked = GenerationRequest(model=name, prompt=prompt, seed=seed)
                results.append(await self.generation.run_aside(asked, f"{job_id}-{done + 1}"))
            sides.append(results)
        compared(_sum([*sides[0], *sides[1]]))
        images = []
        for (prompt, seed), old, new in zip(golden.items(), *sides, strict=True):
            images.append(await self.pool.run(_image, prompt, seed, old, new))
        return GoldenComparison(
            entry.id,
            *shown,
            tuple(images),
            mean_interval([image.distance for image in images], least=0.0),
            mean_interval([image.new_s - image.old_s for image in images]),
        )


def golden_of(entry: ModelSpec) -> Mapping[str, int]:
    """Return a model's golden prompts with their seeds: its own, else some of all it knows, else the usual ones."""
    subjects = {subject: seed for seed, subject in enumerate(entry.subjects[:_SUBJECTS], 1)}
    return entry.golden or subjects or USUAL


def _image(prompt: str, seed: int, old: JobResult, new: JobResult) -> GoldenImage:
    before, after = (result.artifacts[0] for result in (old, new))
    if not isinstance(before, Artifact) or not isinstance(after, Artifact):
        raise UnsupportedModel("Golden prompts are for models that generate here.", field="model")
    both = encode(beside(before.raster, after.raster), "webp", _QUALITY)
    seconds = old.timings.inference_s, new.timings.inference_s
    return GoldenImage(prompt, seed, distance(before.raster, after.raster), *seconds, both)


def _sum(results: list[JobResult]) -> JobResult:
    """Return one result with the seconds and the cost of all."""
    usages = [result.usage for result in results]
    costs = [usage.cost_usd for usage in usages if usage.cost_usd is not None]
    usage = replace(
        usages[-1],
        gpu_seconds=sum(usage.gpu_seconds for usage in usages),
        images=sum(usage.images for usage in usages),
        pixel_steps=sum(usage.pixel_steps for usage in usages),
        bytes_downloaded=sum(usage.bytes_downloaded for usage in usages),
        cost_usd=sum(costs) if costs else None,
    )
    stages = tuple(stage for result in results for stage in result.timings.stages)
    return replace(results[-1], usage=usage, timings=Timings.of(stages, 1))
