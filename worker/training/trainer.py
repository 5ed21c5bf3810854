"""A trainer: one adapter on one pipeline, one step at a time; between two steps the device may do other work."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from worker.core.errors import InvalidOutput
from worker.training.adapter import attach, set_weights, weights_of
from worker.training.buckets import bucket, fitted
from worker.training.checkpoint import Checkpoint, optimizer_tensors, set_optimizer_tensors
from worker.training.dataset import Example, mirrored
from worker.training.lessons import Lessons, read_call, together
from worker.training.objective import Objective
from worker.training.options import TrainingOptions
from worker.training.rehearsal import DenoiserCall, denoiser_of, habits_of, output_of, rehearse

_CLIP = 1.0  # norm of a step's gradients
_HELD_OUT = 2**31  # what seeds of held-out lessons begin at
_BETAS, _WEIGHT_DECAY = (0.9, 0.999), 0.01


@dataclass(frozen=True, slots=True)
class Lesson:
    """An image at its size, rehearsed with its caption and without words."""

    words: Path
    silent: Path
    size: tuple[int, int]


class Trainer:
    """Owns a pipeline of its own. `prepare` encodes, `step` learns; used from the engine's thread only."""

    def __init__(self, pipe: Any, options: TrainingOptions, side: int, multiple: int) -> None:
        self._pipe, self._options = pipe, options
        self._side, self._multiple = options.resolution or side, multiple
        self.prefix, self._denoiser = denoiser_of(pipe)
        self._parameter = next(self._denoiser.parameters())
        self._objective = Objective.of(pipe.scheduler, options.min_snr)
        self._lessons: list[Lesson] = []
        self._held: list[Lesson] = []
        self._learning: list[tuple[str, nn.Parameter]] = []
        self.steps_done = 0

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser, with the adapter once it is begun."""
        return self._denoiser

    def prepare(
        self, examples: Sequence[Example], held: Sequence[Example], lessons: Lessons, tell: Callable[[int, int], None]
    ) -> None:
        """Rehearse every example, or find it on disk; afterwards only the denoiser is kept in memory."""
        learnt = [*examples, *(mirrored(each) for each in examples if self._options.flip)]
        total = len(learnt) + len(held)
        self._habits = habits_of(self._pipe, self._image(learnt[0])[0], self._options.seed)
        found = []
        for index, example in enumerate([*learnt, *held]):
            found.append(self._lesson(example, lessons))
            tell(index + 1, total)
        self._lessons, self._held = found[: len(learnt)], found[len(learnt) :]
        for name, part in self._pipe.components.items():
            if isinstance(part, nn.Module) and part is not self._denoiser:
                setattr(self._pipe, name, None)

    def _lesson(self, example: Example, lessons: Lessons) -> Lesson:
        image, size = self._image(example)
        seed = int(example.digest[:8], 16)

        def file(words: str) -> Path:
            return lessons.call(
                (example.digest, words, size), lambda: rehearse(self._pipe, self._habits, image, words, seed)
            )

        return Lesson(file(example.caption), file(""), size)

    def _image(self, example: Example) -> tuple[Image, tuple[int, int]]:
        size = bucket(example.width, example.height, self._side, self._multiple)
        return fitted(example.raster(), size), size

    def begin(self, checkpoint: Checkpoint | None = None) -> None:
        """Lay the adapter into the denoiser, as it was at `checkpoint` or fresh."""
        self._learning = attach(self._denoiser, self._options)
        if hasattr(self._denoiser, "enable_gradient_checkpointing") and self._parameter.device.type != "cpu":
            self._denoiser.enable_gradient_checkpointing()
        self._denoiser.train()
        parameters = [parameter for _, parameter in self._learning]
        rate = self._options.learning_rate
        self._optimizer = torch.optim.AdamW(parameters, lr=rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
        if checkpoint is not None:
            set_weights(self._denoiser, checkpoint.weights)
            set_optimizer_tensors(self._optimizer, self._names, checkpoint.optimizer)
            self.steps_done = checkpoint.step

    @property
    def _names(self) -> list[str]:
        return [name for name, _ in self._learning]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        options = self._options
        rise = min(1.0, (step + 1) / max(1, options.warmup_steps))
        fall = 1.0 if options.decay == "constant" else 0.5 + 0.5 * math.cos(math.pi * step / options.steps)
        return options.learning_rate * rise * fall

    def step(self) -> float:
        """Take the next step, and return its loss. Raises InvalidOutput for a loss that is no number."""
        random = self._random(self.steps_done)
        loss = self._loss(self._next_lessons(), random, self._options.caption_dropout)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(self.steps_done)
        if not math.isfinite(loss):
            raise InvalidOutput(
                f"The loss of step {self.steps_done + 1} is no number: the last checkpoint stays; go on from it with a "
                "lower learning_rate.",
                field="learning_rate",
            )
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self._learning], _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return loss

    def held_out_loss(self) -> float | None:
        """Return the mean loss on the images held out, at the same times and noise at every call."""
        if not self._held:
            return None
        losses = []
        with torch.no_grad():
            for index, lesson in enumerate(self._held):
                losses.append(self._loss([lesson], self._random(_HELD_OUT + index), 0.0, learn=False))
        return sum(losses) / len(losses)

    def checkpoint(self, **facts: Any) -> Checkpoint:
        """Return the state after the last step."""
        tensors = optimizer_tensors(self._optimizer, self._names)
        return Checkpoint(self.steps_done, weights_of(self._denoiser), tensors, facts)

    def _random(self, step: int) -> torch.Generator:
        return torch.Generator("cpu").manual_seed((self._options.seed << 32) + step)

    def _next_lessons(self) -> list[Lesson]:
        """Return the lessons of the next step: every epoch has all, in an order of its own."""
        count, size = len(self._lessons), self._options.batch_size
        places = range(self.steps_done * size, (self.steps_done + 1) * size)
        return [self._lessons[self._order(place // count)[place % count]] for place in places]

    def _order(self, epoch: int) -> list[int]:
        random = torch.Generator("cpu").manual_seed((self._options.seed << 32) + _HELD_OUT // 2 + epoch)
        order: list[int] = torch.randperm(len(self._lessons), generator=random).tolist()
        return order

    def _loss(self, lessons: Sequence[Lesson], random: torch.Generator, dropout: float, *, learn: bool = True) -> float:
        """Return the mean loss of these lessons; their gradients are added where they are to be learnt."""
        times = self._objective.times(len(lessons), random)
        silent = torch.rand(len(lessons), generator=random) < dropout
        device = self._parameter.device
        files = [each.silent if quiet else each.words for each, quiet in zip(lessons, silent.tolist(), strict=True)]
        calls, total = together([read_call(file, device) for file in files]), 0.0
        at = 0
        for call in calls:
            count = len(call.clean)
            noise = torch.randn(call.clean.shape, generator=random).to(device)
            losses = self._losses(call, noise, times[at : at + count])
            share = losses.sum() / len(lessons)
            if learn:
                share.backward()
            total, at = total + float(share.detach()), at + count
        return total

    def _losses(self, call: DenoiserCall, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        clean = call.clean.float()
        noisy = self._objective.noisy(clean, noise, times).to(call.clean.dtype)
        sample = call.arguments[call.sample_name]
        told = self._habits.told(times.double())
        seen = torch.as_tensor(call.arguments[call.time_name])
        arguments = {
            **call.arguments,
            call.sample_name: list(noisy) if isinstance(sample, list) else noisy,
            call.time_name: told.to(noisy.device, seen.dtype),
        }
        half = self._parameter.dtype != torch.float32
        with torch.autocast(noisy.device.type, self._parameter.dtype if half else torch.bfloat16, enabled=half):
            predicted = output_of(self._denoiser(**arguments))
        return self._objective.loss(predicted * self._habits.sign, clean, noise, times)
