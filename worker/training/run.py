"""A training from its dataset to its file: steps in turns on the device, and at each checkpoint a file and its samples.

The folder of a training holds everything that it needs to go on, also on another worker:

| file | |
|---|---|
| `NAME.safetensors`, `NAME-kohya.safetensors` | the adapter at the last checkpoint, or the best, in two spellings |
| `checkpoints/step-000250/` | the adapter's weights and the optimizer's, the losses until then |
| `samples/step-000250-1.png` | what serving generates with the file of that step; `step-000000` is the model alone |
| `best/` | the adapter of the best checkpoint, where `patience` is asked for |
| `model/step-000250/`, `parts/` | in the place of an adapter, a whole model; those of its parts that are not trained |
| `loss.png`, `progress.jsonl`, `tensorboard/` | the losses; the last where it is asked for |
| `README.md` | a page about the adapter, as the Hub reads it |
| `class/` | images of what the subject is one of |
| `lessons/` | encoded images and captions |
| `training.json` | which training this is, and how long an image takes |

Whatever ends a training between two checkpoints, but for a crash, leaves one of its last step.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from worker.core.errors import InvalidRequest, JobCancelled, JobTimeout, Overloaded, ShuttingDown
from worker.core.fingerprint import fingerprint
from worker.core.result import Emit, Progress
from worker.core.training import LOOKED_AT, WORDS, TrainingOptions
from worker.core.turn import StopSignal
from worker.store.lease import STALE_S, Lease, LeaseLost
from worker.training.adapter import describe
from worker.training.best import Measured
from worker.training.card import card
from worker.training.checkpoint import Checkpoint, keep_last, write_whole
from worker.training.dataset import Dataset
from worker.training.deliveries import AdapterDelivery, Delivery, ModelDelivery
from worker.training.drawing import Draw, Drawing
from worker.training.failures import of_disk
from worker.training.lessons import Lessons
from worker.training.loss_plot import plot_losses
from worker.training.pace import progress_of
from worker.training.progress_log import ProgressLog
from worker.training.rehearsal import denoiser_of
from worker.training.subject import Subject
from worker.training.trainer import Trainer
from worker.training.whole_model import write_others
from worker.training.wishes import Wishes

T = TypeVar("T")
_LOOK_S = 1.0
# Ends that are nobody's fault: the state after the last step is sound.
_STOPS = (asyncio.CancelledError, JobCancelled, JobTimeout, ShuttingDown)


class Turns(Protocol):
    """The device's thread: it does one piece of work at a time."""

    async def __call__(self, work: Callable[[], T], label: str) -> T:
        """Run `work` there."""
        ...


@dataclass(slots=True)
class TrainingRun:
    """One training in its folder. It goes on where its last checkpoint is.

    Others have the device after every step that ends a turn of `turn_s` seconds; it is kept to the next checkpoint
    without. `on_kept` is called with the adapter's file at each checkpoint.
    """

    folder: Path
    name: str
    subject: Subject
    options: TrainingOptions
    dataset: Dataset
    turns: Turns
    draw: Draw
    turn_s: float = 0.5
    on_kept: Callable[[Path], None] = lambda file: None
    closing: Callable[[], bool] = lambda: False  # True once the worker is being stopped
    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    resumed_at: int = 0
    kept_at: int = 0
    delivered_at: int = 0
    learning_s: float = 0.0
    is_ending: bool = False
    log: ProgressLog = field(init=False)
    delivery: Delivery = field(init=False)
    check_lease: Callable[..., None] = lambda look=False: None
    wishes: Wishes = field(init=False)

    def __post_init__(self) -> None:
        """Choose what is delivered."""
        whole, averaged = self.options.field == "model", self.options.ema is not None
        self.delivery = ModelDelivery(self.folder, averaged) if whole else AdapterDelivery(self.folder, self.name)

    @property
    def file(self) -> Path:
        """The file of the adapter, as diffusers spells it, or the folder of the model."""
        return self.delivery.file(self.delivered_at)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that came of it: the adapter in two spellings, the losses as an image, its page, the last samples."""
        beside = (self.folder / "loss.png", self.card, *self._last_samples)
        return (*self.delivery.files(self.delivered_at), *(each for each in beside if each.exists()))

    @property
    def _measured(self) -> Measured:
        return Measured.of(self.held_out, self.options.save_every, self.options.steps)

    @property
    def is_done(self) -> bool:
        """True after the last step that it is to have."""
        patience = self.options.patience
        return self.kept_at >= self.options.steps or (patience is not None and self._measured.is_over(patience))

    @property
    def note(self) -> str | None:
        """A sentence on what `patience` did."""
        if not self.is_done or self.options.patience is None:
            return None
        early = self.kept_at < self.options.steps
        words = f"It ended after step {self.kept_at} of {self.options.steps}; its" if early else "The"
        return f"{words} adapter is that of step {self.delivered_at}, with the lowest loss on images held out."

    @property
    def card(self) -> Path:
        """The page about the adapter, as the Hub reads it."""
        return self.folder / "README.md"

    @property
    def _last_samples(self) -> list[Path]:
        return sorted((self.folder / "samples").glob(f"step-{self.delivered_at:06d}-*.png"))

    async def run(self, emit: Emit, stop: StopSignal, minutes: float | None = None) -> Path:
        """Train to the last step, or for `minutes`, and return the adapter's file.

        Whatever ends it, the last checkpoint stays. Raises InvalidRequest if the folder holds another training,
        JobCancelled …
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with Lease(self.folder / "lease") as lease:
            await self._hold(lease, stop)
            self.check_lease = lease.check
            self.wishes = Wishes(self.folder)
            try:
                return await self._run(emit, stop, minutes)
            except LeaseLost:
                raise self._taken() from None
            except Exception as error:
                if (ours := of_disk(error, self.kept_at)) is error:
                    raise
                raise ours from None

    def _taken(self) -> Overloaded:
        return Overloaded(
            f"Another process trains in {self.folder.name[:80]} now; wait for its end, or send another name.",
            field="name",
            details={"retry_after_s": int(STALE_S)},
        )

    async def _hold(self, lease: Lease, stop: StopSignal) -> None:
        """Wait until a process that died with the folder is known to be dead. Raises Overloaded if one lives."""
        ends = time.monotonic() + 2 * STALE_S
        while not await self.turns(lease.acquire, "train: wait"):
            stop.check()
            if time.monotonic() > ends:
                raise self._taken()
            await asyncio.sleep(_LOOK_S)

    async def _run(self, emit: Emit, stop: StopSignal, minutes: float | None) -> Path:
        checkpoint = self._begin()
        if self.is_done and self.file.exists():
            await self._deliver_best()
            return self.file
        ends = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
        trainer = await self._trainer(emit, checkpoint)
        self.log = ProgressLog(self.folder, self.resumed_at, tensorboard=self.options.tensorboard)
        try:
            if checkpoint is None:
                await self._samples(None, 0)
            while not self.is_done:
                stop.check()
                self._check_open()
                await self.turns(lambda: self._turn(trainer, emit, stop, ends), "train")
                wish = self.wishes.take()
                is_last = wish == "stop" or time.monotonic() > ends
                await self._keep_if_due(trainer, "sample" if is_last else wish)
                if is_last:
                    break
        except _STOPS:
            self.is_ending = True
            await _to_its_end(self._keep_what_is_new(trainer))
            raise
        finally:
            trainer.close()
            self.log.close()
            self._note_pace()
        if self.is_done:
            await self._deliver_best()
        return self.file

    async def _keep_if_due(self, trainer: Trainer, wish: str | None) -> None:
        """Keep a checkpoint with its samples where one is due or wished for; one without where it is to be saved."""
        is_due = self._is_due(trainer.steps_done)
        if is_due or wish is not None:
            await self._keep(trainer)
            if is_due or wish != "save":
                await self._samples(self.file, trainer.steps_done)
            self._write_card()

    def _check_open(self) -> None:
        if self.closing():
            raise ShuttingDown("This worker is being stopped; send the training again, and it goes on where it was.")

    async def _keep_what_is_new(self, trainer: Trainer) -> None:
        """Keep the state after the last step, once the engine's thread has ended its turn."""
        await self.turns(lambda: None, "train: stop")
        if trainer.steps_done > self.kept_at:
            await self._keep(trainer)

    def _begin(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, if this very training has one."""
        identity, file = self._identity(), self.folder / "training.json"
        if file.exists() and json.loads(file.read_text()).get("identity") != identity:
            raise InvalidRequest(
                f"name holds another training: {self.folder.name[:80]} was begun with another model, dataset or "
                "options; choose another name, or delete this folder.",
                field="name",
            )
        shown = self.options.model_dump(mode="json", exclude={*WORDS})
        facts = {"identity": identity, "model": self.subject.model, "options": shown}
        write_whole(file, facts | {"samples": len(self._drawing.prompts)})
        checkpoint = Checkpoint.latest(self.folder / "checkpoints")
        if checkpoint is not None:
            self.losses = list(checkpoint.facts["losses"])
            self.held_out = [(step, loss) for step, loss in checkpoint.facts["held_out"]]
            self.resumed_at = self.kept_at = self.delivered_at = checkpoint.step
        return checkpoint

    def _identity(self) -> str:
        """Return a digest of all that determines the weights: what is only looked at may change on the way."""
        lasting = self.options.model_dump(mode="json", exclude={*LOOKED_AT}, exclude_defaults=True)
        return fingerprint((self.subject.model, self.subject.digest, lasting, self.dataset.digest))

    async def _trainer(self, emit: Emit, checkpoint: Checkpoint | None) -> Trainer:
        emit(Progress("load", 0, 0))

        def build() -> Trainer:
            subject = self.subject
            pipe = subject.load()
            if isinstance(self.delivery, ModelDelivery):  # before parts are let go of
                write_others(self.delivery.parts, pipe, denoiser_of(pipe)[0], subject.pipeline)
            return Trainer(pipe, self.options, subject.native_size, subject.size_multiple)

        trainer = await self.turns(build, "train: load")
        examples, held = self.dataset.split(self.options.held_out)
        lessons = Lessons(self.folder / "lessons", self.subject.digest)

        def tell(done: int, total: int) -> None:
            emit(Progress("encode", done, total, "images and captions"))

        of_class = await self._drawing.of_class(emit)
        await self.turns(lambda: trainer.prepare(examples, held, lessons, tell, of_class), "train: encode")
        await self.turns(lambda: trainer.begin(checkpoint), "train: begin")
        await self.turns(lambda: trainer.share(self.subject.ranks()), "train: processes")
        return trainer

    def _turn(self, trainer: Trainer, emit: Emit, stop: StopSignal, ends: float) -> None:
        """Take the steps of one turn: up to the next checkpoint, or until others shall have the device."""
        began = time.monotonic()
        turn_ends = min(began + self.turn_s, ends)
        self.check_lease()
        while stop.reason is None and not self.is_ending and not self.closing():
            loss = trainer.step()
            self.learning_s += time.monotonic() - began
            began = time.monotonic()
            self._note(trainer, loss)
            emit(self._progress(trainer))
            if self._is_due(trainer.steps_done) or time.monotonic() >= turn_ends or self.wishes.is_one():
                return

    def _is_due(self, step: int) -> bool:
        return step == self.options.steps or step % self.options.save_every == 0

    def _note(self, trainer: Trainer, loss: float) -> None:
        self.losses.append(loss)
        self.log.step(trainer.steps_done, loss, trainer.rate(trainer.steps_done - 1))

    def _progress(self, trainer: Trainer) -> Progress:
        pace = self.learning_s / max(1, trainer.steps_done - self.resumed_at)
        return progress_of(self.losses, self.options.steps, trainer.rate(trainer.steps_done - 1), pace)

    def _note_pace(self) -> None:
        """Note how long an image takes, for plans of other trainings."""
        steps = len(self.losses) - self.resumed_at
        if steps > 0:
            file = self.folder / "training.json"
            seconds = self.learning_s / steps / self.options.images_a_step
            write_whole(file, json.loads(file.read_text()) | {"seconds_an_image": seconds})

    async def _keep(self, trainer: Trainer) -> None:
        """Write checkpoint, file and plot."""
        step = trainer.steps_done

        def write() -> None:
            self.check_lease(look=True)  # who took it over writes here now
            with trainer.averaged():
                loss = trainer.held_out_loss()
                self.delivery.write(trainer.learner, step, self._metadata(step))
            if loss is not None:
                self.held_out.append((step, loss))
                self.log.held_out(step, loss)
            is_best = self.options.patience is not None and self._measured.best == step
            if is_best:  # before its checkpoint: who goes on from that relies on it
                self.delivery.keep_best(step)
            place = self.folder / "checkpoints"
            checkpoint = trainer.checkpoint(losses=self.losses, held_out=self.held_out)
            checkpoint.write(place, self.delivery.weights(step))
            keep_last(place, self.delivery.checkpoints)
            best_step = None if self.options.patience is None else self._measured.best
            self.delivery.forget(step, best_step, is_best=is_best)

        await self.turns(write, "train: save")
        self.kept_at = self.delivered_at = step
        plot_losses(self.losses, self.held_out).save(self.folder / "loss.png")
        self.on_kept(self.file)

    async def _deliver_best(self) -> None:
        """Put the best adapter in the place of the last one, where `patience` is asked for."""
        step = None if self.options.patience is None else self._measured.best
        if step is None or step == self.delivered_at:
            return

        def write() -> bool:
            self.check_lease(look=True)
            return self.delivery.take_best(step)

        if await self.turns(write, "train: best"):
            self.delivered_at = step
            self._write_card()
            self.on_kept(self.file)

    def _write_card(self) -> None:
        step = self.delivered_at
        measured = [(at, loss) for at, loss in self.held_out if at == step]
        self.card.write_text(card(self.name, self._metadata(step), self.options, measured, self._last_samples))

    def _metadata(self, step: int) -> dict[str, str]:
        subject, dataset = self.subject, self.dataset
        facts = describe(self.options, subject.model, subject.architecture, dataset.digest, len(dataset.examples))
        return facts | {"training.step": str(step)}

    async def _samples(self, file: Path | None, step: int) -> None:
        await self._drawing.samples(file, step, lambda number, target: self.log.sample(step, number, target))

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.folder, self.options, self.dataset, self.draw)


async def _to_its_end(work: Awaitable[None]) -> None:
    """Await `work` to its end, even if cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()
