"""A training from its dataset to its file: steps in turns on the device, and at each checkpoint a file and its samples.

The folder of a training holds everything that it needs to go on, also on another worker:

| file | |
|---|---|
| `NAME.safetensors`, `NAME-kohya.safetensors` | the adapter at the last checkpoint, in two spellings |
| `checkpoints/step-000250/` | the adapter's weights and the optimizer's, the losses until then |
| `samples/step-000250-1.png` | what serving generates with the file of that step; `step-000000` is the model alone |
| `loss.png`, `progress.jsonl` | the losses |
| `lessons/` | encoded images and captions |
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from worker.core.errors import InvalidRequest, Overloaded
from worker.core.fingerprint import fingerprint
from worker.core.result import Emit, Progress
from worker.core.turn import StopSignal
from worker.store.lease import STALE_S, Lease
from worker.training.adapter import describe, write_adapter
from worker.training.checkpoint import Checkpoint, keep_last
from worker.training.dataset import Dataset
from worker.training.lessons import Lessons
from worker.training.loss_plot import plot_losses, smoothed
from worker.training.options import TrainingOptions
from worker.training.trainer import Trainer

T = TypeVar("T")
_TURN_S = 0.5  # the device is given back between turns
_CHECKPOINTS = 2
_LOOK_S = 1.0
Draw = Callable[[Path | None, str, int], Awaitable[bytes]]


class Turns(Protocol):
    """The device's thread: it does one piece of work at a time."""

    async def __call__(self, work: Callable[[], T], label: str) -> T:
        """Run `work` there."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is trained: its id, family, the size and grid of its images, and how its pipeline is built."""

    model: str
    digest: str
    architecture: str | None
    native_size: int
    size_multiple: int
    load: Callable[[], Any]


@dataclass(slots=True)
class TrainingRun:
    """One training in its folder. It goes on where its last checkpoint is."""

    folder: Path
    name: str
    subject: Subject
    options: TrainingOptions
    dataset: Dataset
    turns: Turns
    draw: Draw
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    resumed_at: int = 0

    @property
    def file(self) -> Path:
        """The file of the adapter, as diffusers spells it."""
        return self.folder / f"{self.name}.safetensors"

    async def run(self, emit: Emit, stop: StopSignal, minutes: float | None = None) -> Path:
        """Train to the last step, or for `minutes`, and return the adapter's file.

        Whatever ends it, the last checkpoint stays. Raises InvalidRequest if the folder holds another training,
        JobCancelled …
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with Lease(self.folder / "lease") as lease:
            await self._hold(lease, stop)
            return await self._run(emit, stop, minutes)

    async def _hold(self, lease: Lease, stop: StopSignal) -> None:
        """Wait until a process that died with the folder is known to be dead. Raises Overloaded if one lives."""
        ends = time.monotonic() + 2 * STALE_S
        while not await self.turns(lease.acquire, "train: wait"):
            stop.check()
            if time.monotonic() > ends:
                raise Overloaded(
                    f"Another process trains in {self.folder.name[:80]} now; wait for its end, or name another folder.",
                    field="output",
                )
            await asyncio.sleep(_LOOK_S)

    async def _run(self, emit: Emit, stop: StopSignal, minutes: float | None) -> Path:
        checkpoint = self._begin()
        ends = time.monotonic() + 60 * minutes if minutes is not None else None
        trainer = await self._trainer(emit, checkpoint)
        if checkpoint is None:
            await self._samples(None, 0)
        while trainer.steps_done < self.options.steps:
            stop.check()
            losses = await self.turns(lambda: self._turn(trainer), "train")
            self._note(trainer, losses)
            emit(self._progress(trainer))
            out_of_time = ends is not None and time.monotonic() > ends
            if out_of_time or self._is_due(trainer.steps_done):
                await self._keep(trainer)
            if out_of_time:
                break
        return self.file

    def _begin(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, if this very training has one."""
        identity, file = self._identity(), self.folder / "training.json"
        if file.exists() and json.loads(file.read_text()).get("identity") != identity:
            raise InvalidRequest(
                f"output holds another training: {self.folder.name[:80]} was begun with another model, dataset or "
                "options; name another folder, or delete this one.",
                field="output",
            )
        facts = {"identity": identity, "model": self.subject.model, "options": self.options.model_dump(mode="json")}
        file.write_text(json.dumps(facts, indent=1))
        checkpoint = Checkpoint.latest(self.folder / "checkpoints")
        if checkpoint is not None:
            self.losses = list(checkpoint.facts["losses"])
            self.held_out = [(step, loss) for step, loss in checkpoint.facts["held_out"]]
            self.resumed_at = checkpoint.step
        return checkpoint

    def _identity(self) -> str:
        """Return a digest of all that determines the weights: what is only looked at may change on the way."""
        lasting = self.options.model_dump(mode="json", exclude={"samples", "save_every"})
        return fingerprint((self.subject.model, self.subject.digest, lasting, self.dataset.digest))

    async def _trainer(self, emit: Emit, checkpoint: Checkpoint | None) -> Trainer:
        emit(Progress("load", 0, 0))

        def build() -> Trainer:
            subject = self.subject
            return Trainer(subject.load(), self.options, subject.native_size, subject.size_multiple)

        trainer = await self.turns(build, "train: load")
        examples, held = self.dataset.split(self.options.held_out)
        lessons = Lessons(self.folder / "lessons", self.subject.digest)

        def tell(done: int, total: int) -> None:
            emit(Progress("encode", done, total, "images and captions"))

        await self.turns(lambda: trainer.prepare(examples, held, lessons, tell), "train: encode")
        await self.turns(lambda: trainer.begin(checkpoint), "train: begin")
        return trainer

    def _turn(self, trainer: Trainer) -> list[float]:
        """Take the steps of one turn: up to the next checkpoint, or until others shall have the device."""
        losses, ends = [], time.monotonic() + _TURN_S
        while True:
            losses.append(trainer.step())
            if self._is_due(trainer.steps_done) or time.monotonic() >= ends:
                return losses

    def _is_due(self, step: int) -> bool:
        return step == self.options.steps or step % self.options.save_every == 0

    def _note(self, trainer: Trainer, losses: list[float]) -> None:
        first = trainer.steps_done - len(losses)
        self.losses += losses
        with (self.folder / "progress.jsonl").open("a") as file:
            for index, loss in enumerate(losses):
                step = first + index + 1
                file.write(json.dumps({"step": step, "loss": loss, "learning_rate": trainer.rate(step - 1)}) + "\n")

    def _progress(self, trainer: Trainer) -> Progress:
        message = f"loss {smoothed(self.losses)[-1]:.4f}"
        return Progress("train", trainer.steps_done, self.options.steps, message)

    async def _keep(self, trainer: Trainer) -> None:
        """Write checkpoint, file and plot, then let serving generate with that file."""
        step = trainer.steps_done

        def write() -> None:
            loss = trainer.held_out_loss()
            if loss is not None:
                self.held_out.append((step, loss))
            place = self.folder / "checkpoints"
            trainer.checkpoint(losses=self.losses, held_out=self.held_out).write(place)
            keep_last(place, _CHECKPOINTS)
            write_adapter(self.file, trainer.denoiser, trainer.prefix, self.options.rank, self._metadata(step))

        await self.turns(write, "train: save")
        plot_losses(self.losses, self.held_out).save(self.folder / "loss.png")
        await self._samples(self.file, step)

    def _metadata(self, step: int) -> dict[str, str]:
        subject, dataset = self.subject, self.dataset
        facts = describe(self.options, subject.model, subject.architecture, dataset.digest, len(dataset.examples))
        return facts | {"training.step": str(step)}

    async def _samples(self, file: Path | None, step: int) -> None:
        for index, prompt in enumerate(self.options.samples):
            target = self.folder / "samples" / f"step-{step:06d}-{index + 1}.png"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(await self.draw(file, prompt, self.options.seed))


def shown(faults: tuple[str, ...], most: int = 10) -> list[str]:
    """Return the first faults of a dataset, and how many more there are."""
    return [*faults[:most], *([f"and {len(faults) - most} more like these"] if len(faults) > most else [])]
