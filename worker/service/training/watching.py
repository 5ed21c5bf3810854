"""A look at a training from its folder, and wishes for it: from any process of any worker of its volume.

A training is shown to the caller who sent it last, and to nobody else. The folder's layout is told in the room of
training.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from worker.core.errors import InvalidRequest
from worker.core.fingerprint import fingerprint
from worker.core.training import WISH_FILE, TrainingControl, TrainingSample, TrainingState

_OWNER = "owner"
_POINTS = 300
_SAMPLES = 16
_SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")


@dataclass(frozen=True, slots=True)
class Watching:
    """The folders of trainings. Everything here is blocking."""

    folder: Path

    def own(self, folder: Path, caller: str | None) -> None:
        """Note whose training this is."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _OWNER).write_text(fingerprint(caller))

    def answer(self, control: TrainingControl, caller: str | None) -> TrainingState:
        """Say where a training stands; a wish is fulfilled after its present step. Raises InvalidRequest."""
        folder = self.folder / control.name
        owner = folder / _OWNER
        if not owner.exists() or owner.read_text() != fingerprint(caller):
            raise InvalidRequest(
                f"name {control.name} is no training that your key sent; send the name of one of yours.", field="name"
            )
        is_running = (folder / "lease").exists()
        if control.control != "look":
            if not is_running:
                raise InvalidRequest(
                    f"name {control.name} is not under way; send its train request again, and it goes on.", field="name"
                )
            if control.control != "stop" and _is_of_another(folder):
                raise InvalidRequest(
                    f"control={control.control} cannot be said to ai-toolkit, which saves every save_every steps "
                    "alone; send look or stop.",
                    field="control",
                )
            partial = folder / f".{WISH_FILE}.partial"
            partial.write_text(control.control)
            partial.replace(folder / WISH_FILE)
        return _state(folder, control, is_running)


def _is_of_another(folder: Path) -> bool:
    """Return True for a training by another program than this worker."""
    known = json.loads((folder / "training.json").read_text())
    return bool(known["options"].get("trainer") == "ai-toolkit")


def _state(folder: Path, control: TrainingControl, is_running: bool) -> TrainingState:
    losses, facts = _losses(folder / "progress.jsonl"), folder / "training.json"
    known = json.loads(facts.read_text()) if facts.exists() else {}
    return TrainingState(
        name=control.name,
        model=known.get("model"),
        is_running=is_running,
        step=max(losses, default=0),
        of=known["options"]["steps"] if known else 0,
        losses=tuple(sorted(losses.items())),
        samples=_samples(folder / "samples", control.samples_after, known.get("samples", 0) if is_running else 0),
    )


def _losses(file: Path) -> dict[int, float]:
    """Return losses by step: at most so many, spread over all, the last among them. Steps taken again count once."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    every = max(1, len(lines) // _POINTS)
    found: dict[int, float] = {}
    for line in lines[::-1][::every][::-1]:
        try:
            row = json.loads(line)
        except ValueError:  # it is being written just now
            continue
        found[row["step"]] = row["loss"]
    return found


def _samples(folder: Path, after: int, whole: int) -> tuple[TrainingSample, ...]:
    """Return the first samples of steps after this one. Those of the last step come once there are `whole` of them."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for file in sorted(folder.glob("step-*.png")):
        match = _SAMPLE.fullmatch(file.name)
        if match:
            found.setdefault(int(match[1]), []).append((int(match[2]), file))
    if found and len([*found.values()][-1]) < whole:
        found.popitem()
    new = [(step, *each) for step, samples in found.items() if step > after for each in samples]
    first = [each for each in new if each in new[:_SAMPLES] or each[0] == new[_SAMPLES - 1][0]]
    return tuple(TrainingSample(step, number, file.read_bytes()) for step, number, file in first)
