"""A trainer: one adapter on one pipeline, one step at a time; between two steps the device may do other work."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import nn

from worker.core.errors import InvalidOutput, UnsupportedModel
from worker.core.training import TrainingOptions
from worker.training.checkpoint import Checkpoint, optimizer_tensors, set_optimizer_tensors
from worker.training.cuts import Cut, cut_beside, cuts_of, steadily
from worker.training.dataset import Example, mirrored
from worker.training.frozen import open_gradients
from worker.training.hosts import Learner, Learning, learner_of
from worker.training.lessons import Lessons, grouped, joined, read_call, read_weights
from worker.training.mask_weights import MaskWeights
from worker.training.objective import Objective
from worker.training.optimizers import RATIO, averaged, follow, in_groups, optimizer_of
from worker.training.ranks import ALONE, Ranks
from worker.training.rehearsal import DenoiserCall, denoiser_of, habits_of, learns, output_of, read_anew, rehearse

_CLIP = 1.0  # norm of a step's gradients
_HELD_OUT = 2**31  # what seeds of held-out lessons begin at
_TIMES = 4  # at which each image held out is measured
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Lesson:
    """A part of an image, rehearsed with its caption and without words; None where words are read anew.

    `mask` has the weights of its mask, if it has one.
    """

    example: Example
    cut: Cut
    words: Path | None = None
    silent: Path | None = None
    mask: Path | None = None


class Trainer:
    """Owns a pipeline of its own. `prepare` encodes, `step` learns; used from the engine's thread only."""

    def __init__(self, pipe: Any, options: TrainingOptions, side: int, multiple: int) -> None:
        self._pipe, self._options = pipe, options
        self._grid = side, multiple
        self.prefix, self._denoiser = denoiser_of(pipe)
        self._parameter = next(self._denoiser.parameters())
        self._objective = Objective.of(pipe.scheduler, options.min_snr)
        self._lessons: list[Lesson] = []
        self._held: list[Lesson] = []
        self._class: list[Lesson] = []
        self._learner: Learner | None = None
        self._is_word = options.method == "embedding"
        self._reads_anew = self._is_word or options.text_encoder
        self._ranks: Ranks = ALONE
        self.steps_done = 0

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser, with the adapter once it is begun."""
        return self._denoiser

    def prepare(
        self,
        examples: Sequence[Example],
        held: Sequence[Example],
        lessons: Lessons,
        tell: Callable[[int, int], None],
        of_class: Sequence[Example] = (),
    ) -> None:
        """Rehearse every example, or find it on disk; afterwards only what learns is kept in memory.

        `of_class` are images of what the subject is one of, learnt beside it with a weight of their own.
        """
        learnt = [*examples, *(mirrored(each) for each in examples if self._options.flip)]
        steady = steadily(self._options)
        first = self._cuts(learnt[0], steady)[0]
        source = self._source(learnt[0], first)
        self._habits = habits_of(self._pipe, first.of(learnt[0].raster()), self._options.seed, source)
        self._mask_weights = MaskWeights(self._pipe, self._habits, edits=source is not None)
        total, found = len(learnt) + len(held) + len(of_class), []
        for index, example in enumerate([*learnt, *held, *of_class]):
            is_learnt = index < len(learnt)
            parts = self._parts(example, self._options if is_learnt else steady, lessons)
            found.append(parts * example.repeats if is_learnt else parts)
            tell(index + 1, total)
        ends = len(learnt), len(learnt) + len(held)
        self._lessons, self._held, self._class = (
            [lesson for parts in some for lesson in parts]
            for some in (found[: ends[0]], found[ends[0] : ends[1]], found[ends[1] :])
        )
        for name, part in self._pipe.components.items():
            if isinstance(part, nn.Module) and part is not self._denoiser and not self._reads_anew:
                setattr(self._pipe, name, None)

    def _cuts(self, example: Example, options: TrainingOptions) -> list[Cut]:
        return cuts_of(example.width, example.height, example.digest, options, self._grid)

    def _parts(self, example: Example, options: TrainingOptions, lessons: Lessons) -> list[Lesson]:
        """Return a lesson for each part of an image; equal ones are encoded once."""
        cuts = self._cuts(example, options)
        made = {cut: self._lesson(example, cut, lessons) for cut in dict.fromkeys(cuts)}
        return [made[cut] for cut in cuts]

    def _lesson(self, example: Example, cut: Cut, lessons: Lessons) -> Lesson:
        mask = None
        if (own := example.mask) is not None:
            key = (own.digest, *astuple(cut))
            mask = lessons.weights(key, lambda: self._mask_weights.weights(cut.of(own.read())))
        if self._reads_anew:
            return Lesson(example, cut, mask=mask)
        image = cut.of(example.raster())

        def rehearsed(words: str) -> DenoiserCall:
            source = self._source(example, cut)
            return rehearse(self._pipe, self._habits, image, words, _seed_of(example), source)

        def file(words: str) -> Path:
            source = () if example.source is None else (example.source.digest, *astuple(self._source_cut(example, cut)))
            return lessons.call((example.digest, words, *astuple(cut), *source), lambda: rehearsed(words))

        return Lesson(example, cut, file(example.caption), file(""), mask)

    def _source(self, example: Example, cut: Cut) -> Image | None:
        """Return what this part of an image is made of, if it is made of another."""
        return None if example.source is None else self._source_cut(example, cut).of(example.source.raster())

    def _source_cut(self, example: Example, cut: Cut) -> Cut:
        if example.source is None:
            return cut
        shapes = (example.width, example.height), (example.source.width, example.source.height)
        return cut_beside(cut, *shapes, self._options, self._grid)

    def begin(self, checkpoint: Checkpoint | None = None) -> None:
        """Lay in what learns, as it was at `checkpoint` or fresh. Raises UnsupportedModel, InvalidRequest."""
        reduced = open_gradients(self._pipe, self._parameter.dtype)
        if reduced and self._options.method == "dora":
            raise UnsupportedModel(
                "method dora reads whole weights, and this model's are held in fewer bits; choose lora, or leave "
                "precision out.",
                field="method",
            )
        self._learner = learner = learner_of(self._pipe, (self.prefix, self._denoiser), self._options)
        if hasattr(self._denoiser, "enable_gradient_checkpointing") and self._parameter.device.type != "cpu":
            self._denoiser.enable_gradient_checkpointing()
        self._denoiser.train()
        if self._reads_anew and not learns(self._anew(self._lessons[0], self._options.trigger or "a").arguments):
            raise UnsupportedModel(
                f"{type(self._pipe).__name__} reads words without gradients; train a LoRA without text_encoder.",
                field="method",
            )
        self._groups = in_groups(learner.learning, self._options.lora_plus)
        rate, decay = self._options.learning_rate, 0.0 if self._is_word else _WEIGHT_DECAY
        self._optimizer = optimizer_of(
            self._options.optimizer, self._groups, rate, decay, ratio=self._options.lora_plus
        )
        if checkpoint is not None:
            learner.put_back(checkpoint.weights)
            set_optimizer_tensors(self._optimizer, self._names, checkpoint.optimizer)
            self.steps_done = checkpoint.step

    def share(self, ranks: Ranks) -> None:
        """Take the steps together with other processes, once it is begun. Raises EngineFailure if one has ended."""
        ranks.alike([parameter for _, parameter in self._learning])
        self._ranks = ranks

    def close(self) -> None:
        """End the other processes."""
        self._ranks.close()

    @property
    def learner(self) -> Learner:
        """What learns, once it is begun."""
        if self._learner is None:
            raise RuntimeError("the trainer has not begun")
        return self._learner

    @property
    def _learning(self) -> Learning:
        return self.learner.learning

    @property
    def _names(self) -> list[str]:
        return [name for group in self._groups for name, _ in group]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        options = self._options
        rise = min(1.0, (step + 1) / max(1, options.warmup_steps))
        fall = 1.0 if options.decay == "constant" else 0.5 + 0.5 * math.cos(math.pi * step / options.steps)
        return options.learning_rate * rise * fall

    def step(self) -> float:
        """Take the next step, and return its loss. Raises InvalidOutput for a loss that is no number."""
        self._ranks.begin()
        random = self._random(self.steps_done)
        loss = self._loss(self._next(self._lessons), random, 0.0 if self._is_word else self._options.caption_dropout)
        if self._class:
            loss += self._loss(self._next(self._class), random, 0.0, weight=self._options.class_weight)
        loss = self._ranks.summed([parameter for _, parameter in self._learning], loss)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(self.steps_done) * group.get(RATIO, 1.0)
        norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self._learning], _CLIP)
        if not (math.isfinite(loss) and math.isfinite(float(norm))):
            raise InvalidOutput(
                f"The loss of step {self.steps_done + 1}, or its gradient, is no number: checkpoints stay. "
                "Send the training under another name with a lower learning_rate.",
                field="learning_rate",
            )
        self._optimizer.step()
        if self._options.ema is not None:
            follow(self._optimizer, self._options.ema, self.steps_done)
        self._optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return loss

    def averaged(self) -> AbstractContextManager[None]:
        """Have what is learnt be its running mean while the block inside runs, where there is one."""
        return averaged(self._optimizer)

    def held_out_loss(self) -> float | None:
        """Return the mean loss on the images held out, at the same times and noise at every call."""
        if not self._held:
            return None
        losses = []
        with torch.no_grad():
            for index, lesson in enumerate(lesson for lesson in self._held for _ in range(_TIMES)):
                losses.append(self._loss([lesson], self._random(_HELD_OUT + index), 0.0, weight=None))
        return sum(losses) / len(losses)

    def checkpoint(self, **facts: Any) -> Checkpoint:
        """Return the state after the last step."""
        tensors = optimizer_tensors(self._optimizer, self._names)
        return Checkpoint(self.steps_done, self.learner.weights(), tensors, facts)

    def _random(self, step: int) -> torch.Generator:
        return torch.Generator("cpu").manual_seed((self._options.seed << 32) + step)

    def _next(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Return those of these lessons that are next: every epoch has all, in an order of its own."""
        count, size = len(lessons), self._options.images_a_step
        places = range(self.steps_done * size, (self.steps_done + 1) * size)
        return [lessons[self._order(place // count, count)[place % count]] for place in places]

    def _order(self, epoch: int, count: int) -> list[int]:
        random = torch.Generator("cpu").manual_seed((self._options.seed << 32) + _HELD_OUT // 2 + epoch)
        order: list[int] = torch.randperm(count, generator=random).tolist()
        return order

    def _loss(
        self, lessons: Sequence[Lesson], random: torch.Generator, dropout: float, *, weight: float | None = 1.0
    ) -> float:
        """Return the mean loss of these lessons; their gradients are added with `weight`, where there is one.

        As many as a batch has are on the device at once.
        """
        times = self._objective.times(len(lessons), random)
        silent = (torch.rand(len(lessons), generator=random) < dropout).tolist()
        total, at, size = 0.0, 0, self._options.batch_size
        ranks = ALONE if weight is None else self._ranks
        for start in range(0, len(lessons), size):
            batch = zip(lessons[start : start + size], silent[start : start + size], strict=True)
            for group in grouped([self._call(*each) for each in batch]):
                call = joined(group)
                count, noise = len(call.clean), torch.randn(call.clean.shape, generator=random)
                mine = ranks.mine(at, count)
                if mine and len(mine) < count:
                    call, noise = joined([group[index] for index in mine]), noise[mine]
                if mine:
                    losses = self._losses(call, noise.to(self._parameter.device), times[[at + each for each in mine]])
                    share = losses.sum() / len(lessons) * (1.0 if weight is None else weight)
                    if weight is not None:
                        share.backward()
                    total += float(share.detach())
                at += count
        return total

    def _call(self, lesson: Lesson, silent: bool) -> DenoiserCall:
        call = self._read(lesson, silent)
        if lesson.mask is None:
            return call
        floor, weights = self._options.mask_floor, read_weights(lesson.mask).to(self._parameter.device)
        return replace(call, weight=floor + (1 - floor) * weights)

    def _read(self, lesson: Lesson, silent: bool) -> DenoiserCall:
        file = lesson.silent if silent else lesson.words
        if file is None:
            return self._anew(lesson, "" if silent else lesson.example.caption)
        return read_call(file, self._parameter.device)

    def _anew(self, lesson: Lesson, words: str) -> DenoiserCall:
        """Return the call with words as they are read by now."""
        example = lesson.example
        image, source = lesson.cut.of(example.raster()), self._source(example, lesson.cut)
        text = self.learner.prompt(words)
        return read_anew(self._pipe, self._habits, image, text, _seed_of(example), source)

    def _losses(self, call: DenoiserCall, noise: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        clean = call.clean.float()
        noisy = self._objective.noisy(clean, noise, times)
        told = self._habits.told(times.double())
        seen = torch.as_tensor(call.arguments[call.time_name])
        arguments = {
            **call.at(noisy).arguments,
            call.time_name: told.to(noisy.device, seen.dtype),
        }
        half = self._parameter.dtype != torch.float32
        with torch.autocast(noisy.device.type, self._parameter.dtype if half else torch.bfloat16, enabled=half):
            predicted = call.own(output_of(self._denoiser(**arguments)))
        return self._objective.loss(predicted * self._habits.sign, clean, noise, times, call.weight)


def _seed_of(example: Example) -> int:
    return int(example.digest[:8], 16)
