"""A training by ai-toolkit: in the same folder, with the same limits, wishes, gate, card and answer as one of ours.

Its process has the device until it ends. What it keeps between is in `ai-toolkit/`: `config.yaml` and `log.txt` are
written by us, `adapter/` has its saves, from which it goes on by itself. It saves every `save_every` steps and at the
end, and not when it is stopped: what it learnt after the last save is learnt again.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.core.errors import DiskFull, EngineFailure, InvalidOutput, InvalidRequest, OutOfMemory, UnsupportedModel
from worker.core.result import Emit, Progress
from worker.core.turn import StopSignal
from worker.training.ai_toolkit import saves
from worker.training.ai_toolkit.config import NAME, Base, write_config, write_dataset
from worker.training.ai_toolkit.output import Reading
from worker.training.ai_toolkit.process import Running, Toolkit
from worker.training.loss_plot import plot_losses
from worker.training.pace import progress_of
from worker.training.progress_log import ProgressLog
from worker.training.run import _STOPS, TrainingRun, _to_its_end

_FOLDER, _LOG = "ai-toolkit", "log.txt"
_LOOK_S = 0.5
_MAX_LOG_BYTES = 4 * 2**20


@dataclass(slots=True)
class ToolkitRun(TrainingRun):
    """One training by ai-toolkit in its folder.

    `clear` makes room for it on the device, and `check` is the gate: it raises for a file that does not fit the model.
    """

    toolkit: Toolkit = field(kw_only=True)
    base: Base = field(kw_only=True)
    clear: Callable[[], None] = field(kw_only=True)
    check: Callable[[Path], None] = field(kw_only=True)
    _first_at: tuple[int, float] | None = field(default=None, init=False)  # a step that was told, and when
    _sound_until: float = field(default=math.inf, init=False)  # the step before the first whose loss was no number

    @property
    def place(self) -> Path:
        """The folder of its process."""
        return self.folder / _FOLDER

    async def _run(self, emit: Emit, stop: StopSignal, minutes: float | None) -> Path:
        self._begin()
        self._go_on()
        if self.is_done and self.file.exists():
            return self.file
        ends = time.monotonic() + (math.inf if minutes is None else 60 * minutes)
        emit(Progress("load", 0, 0))
        await self.turns(self._prepare, "train: data")
        self.log = ProgressLog(self.folder, self.resumed_at, tensorboard=self.options.tensorboard)
        try:
            if not self.kept_at:
                await self._samples(None, 0)
            stop.check()
            self._check_open()
            await self.turns(lambda: self._attend(emit, stop, ends), "train")
            stop.check()
            self._check_open()
            if not self.kept_at:
                raise self._too_short()
            await self._samples(self.file, self.kept_at)
            self._write_card()
        except _STOPS:
            self.is_ending = True
            await _to_its_end(self.turns(self._take, "train: stop"))  # once its process has ended
            raise
        finally:
            self.log.close()
            self._note_pace()
            del self.losses[self.kept_at :]
        return self.file

    def _go_on(self) -> None:
        """Find the step that it goes on from, and the losses until then."""
        job = self.place / NAME
        saves.drop_broken(job)
        last = saves.latest(job)
        if last is None:
            return
        self.losses = _losses(self.folder / "progress.jsonl", last.step)
        self.resumed_at = self.kept_at = self.delivered_at = last.step
        if not self.file.exists():
            self.kept_at = 0
            self._take()

    def _prepare(self) -> None:
        self.check_lease(look=True)
        data = self.folder / "lessons" / _FOLDER
        self.place.mkdir(exist_ok=True)
        write_dataset(self.dataset, data)
        write_config(self.place / "config.yaml", self.options, self.base, data.resolve())

    def _attend(self, emit: Emit, stop: StopSignal, ends: float) -> None:
        """Let its process train until it ends, or is to end. Runs in the device's thread."""
        self.clear()
        emit(Progress("load", 0, 1, "ai-toolkit loads the model"))
        reading = Reading(NAME, self.options.steps, len(self.losses))
        process = self.toolkit.start(self.place / "config.yaml", self.options.seed)
        status, wish = None, None
        try:
            while (lines := process.lines(_LOOK_S)) is not None:
                self.check_lease()
                self._hear(reading, lines, emit)
                wish = self.wishes.take() if self.wishes.is_one() else None
                is_over = stop.reason is not None or self.is_ending or self.closing() or time.monotonic() > ends
                if is_over or wish == "stop":
                    return
            status = process.end()
        finally:
            self._finish(process, reading, emit)
            self.losses += self.losses[-1:] * (self.kept_at - len(self.losses))
        if status or not self.is_done:
            raise self._failure(reading, status or 0)

    def _finish(self, process: Running, reading: Reading, emit: Emit) -> None:
        """Have its process stopped, hear what it says until then, and take its last save."""
        process.stop()
        try:
            while (lines := process.lines(_LOOK_S)) is not None:
                self._hear(reading, lines, emit)
        finally:
            process.end()
            saves.drop_after(self.place / NAME, self._sound_until)
            self._take()

    def _hear(self, reading: Reading, lines: list[str], emit: Emit) -> None:
        saves_before = reading.saves
        for line in lines:
            before, began = reading.done, time.monotonic()
            if reading.hear(line):
                self._note_steps(reading, before, began, emit)
            else:
                self._write_log(line)
                if reading.latest is None:
                    emit(Progress("load", 0, 1, "ai-toolkit loads the model"))
        if reading.saves > saves_before:
            self._take()

    def _note_steps(self, reading: Reading, before: int, now: float, emit: Emit) -> None:
        if reading.latest is not None and not math.isfinite(reading.latest):
            self._sound_until = reading.done  # it goes on, and saves what is spoilt
            self._take()
            raise InvalidOutput(
                f"The loss of step {reading.done + 1} is no number: {self._left()}. Send the training under another "
                "name with a lower learning_rate.",
                field="learning_rate",
            )
        for step in range(before + 1, reading.done + 1):
            loss = reading.losses[step - 1 - reading.first]
            self.losses.append(loss)
            self.log.step(step, loss, reading.rate)
        if reading.done > before:
            emit(self._told(reading, now))

    def _told(self, reading: Reading, now: float) -> Progress:
        if self._first_at is None:
            self._first_at = (reading.done, now)
        step, at = self._first_at
        self.learning_s = now - at
        pace = self.learning_s / max(1, reading.done - step)
        return progress_of(self.losses, self.options.steps, reading.rate, pace)

    def _take(self) -> None:
        """Deliver its last save: through the gate, with our metadata."""
        last = saves.latest(self.place / NAME, self._sound_until)
        if last is None or last.step <= self.kept_at:
            return
        self.check_lease(look=True)
        self.check(last.file)
        step = self.kept_at = self.delivered_at = last.step
        made_by = {"modelspec.implementation": "ai-toolkit", "training.trainer": "ai-toolkit"}
        last.deliver(self.file, self._metadata(step) | made_by)
        plot_losses(self.losses[:step], []).save(self.folder / "loss.png")
        self.on_kept(self.file)

    def _write_log(self, line: str) -> None:
        log = self.place / _LOG
        if not log.exists() or log.stat().st_size < _MAX_LOG_BYTES:
            with log.open("a") as file:
                file.write(f"{line}\n")

    def _left(self) -> str:
        return f"the adapter of step {self.kept_at} stays" if self.kept_at else "nothing was saved yet"

    def _too_short(self) -> InvalidRequest:
        return InvalidRequest(
            f"save_every is {self.options.save_every}, and ai-toolkit was stopped before it had saved anything; it "
            "saves at no other time. Send the training under another name with a smaller save_every, or give it more "
            "minutes.",
            field="save_every",
        )

    def _failure(self, reading: Reading, status: int) -> Exception:
        """Return why it ended by itself before its last step, with what is left and the way on."""
        on = f"{self._left()}, and the same request goes on from there"
        if reading.is_out_of_memory:
            return OutOfMemory(
                f"The device ran out of memory in ai-toolkit: {on} on a device with more memory; else send it under "
                "another name with a smaller batch_size or resolution."
            )
        if reading.is_disk_full:
            return DiskFull(f"The volume is full, and {on} once there is room.")
        if (package := reading.missing_package) is not None:
            return UnsupportedModel(
                f"ai-toolkit's environment has no Python package {package}; let the operator install it there; {on}.",
                field="trainer",
                details={"package": package},
            )
        return EngineFailure(
            f"ai-toolkit ended with status {status} after step {reading.done} of {self.options.steps}: {on}. What it "
            f"printed is in {_FOLDER}/{_LOG} of the training's folder."
        )


def _losses(file: Path, until: int) -> list[float]:
    """Return the losses of the steps until this one; where one is not known, the one before it."""
    known: dict[int, float] = {}
    with suppress(FileNotFoundError):
        for line in file.read_text().splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                known[row["step"]] = row["loss"]
    losses, last = list[float](), next(iter(known.values()), 0.0)
    for step in range(1, until + 1):
        last = known.get(step, last)
        losses.append(last)
    return losses
