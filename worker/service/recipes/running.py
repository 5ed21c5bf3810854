"""The jobs of one step of a recipe: run one after the other, and reported as a part of all steps."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from worker.catalog.recipes.recipe import RecipeStep
from worker.core.result import Emit, JobResult, Progress
from worker.service.generation import Asked, GenerationService
from worker.service.limits.quotas import Reservation
from worker.service.recipes.foreseeing import Expected

# Runs one job of a step: what is asked, its number, and how many there are.
Run = Callable[[Asked, int, int], Awaitable[JobResult]]


@dataclass(slots=True)
class StepRun:
    """Runs the jobs of one step: one, or one for each part of an image or frame. `expected` is of all steps.

    `spared` are the pixel-steps that were reserved and not needed, once the number of jobs is known.
    """

    generation: GenerationService
    reservation: Reservation
    emit: Emit
    step: RecipeStep
    expected: Sequence[Expected]
    jobs: int = 0

    async def __call__(self, asked: Asked, number: int = 0, times: int = 1) -> JobResult:
        """Run job `number` of `times`. Raises WorkerError."""
        self.jobs += 1
        return await self.generation.run(asked, self._part_of(number, times), self.reservation, is_reserved=True)

    @property
    def spared(self) -> int:
        """The pixel-steps that were reserved for jobs that were not run."""
        expected = self.expected[self.step.index]
        return expected.pixel_steps * max(0, expected.times - self.jobs)

    def _part_of(self, number: int, times: int) -> Emit:
        """Return `emit` for one job: its denoising steps are reported as a part of all, and messages name its step."""
        weights = [each.weight for each in self.expected]
        before, own, total = sum(weights[: self.step.index]), weights[self.step.index], sum(weights)
        name = f"{self.step.name} ({self.step.index + 1} of {len(weights)})"
        name += f", part {number + 1} of {times}" if times > 1 else ""

        def emit_part(progress: Progress) -> None:
            message = f"{name}: {progress.message}" if progress.message else name
            if progress.phase == "inference" and progress.total > 0:
                share = number * progress.total + min(progress.step, progress.total)
                done = before + own * share // (progress.total * times)
                progress = replace(progress, step=done, total=total)
            self.emit(replace(progress, message=message))

        return emit_part
