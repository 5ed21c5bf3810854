"""A training's steps, as lines of JSON and, where that is asked for, as files that TensorBoard reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = "tensorboard"


class ProgressLog:
    """Notes steps in a training's folder. `after` is the step that it goes on from: later ones noted before are void.

    `tensorboard` asks for tensorboardX's files, too; no word of a prompt stands in them.
    """

    def __init__(self, folder: Path, after: int, *, tensorboard: bool) -> None:
        self._file, self._writer = folder / "progress.jsonl", None
        if tensorboard:
            self._writer = _writer(folder / FOLDER, after)

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """Note a step."""
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss, "learning_rate": learning_rate}) + "\n")
        if self._writer is not None:
            self._writer.add_scalar("loss", loss, step)
            self._writer.add_scalar("learning_rate", learning_rate, step)

    def held_out(self, step: int, loss: float) -> None:
        """Note the loss on images held out."""
        if self._writer is not None:
            self._writer.add_scalar("held_out_loss", loss, step)

    def sample(self, step: int, number: int, file: Path) -> None:
        """Note a sample, by the file of its image."""
        if self._writer is not None:
            with Image.open(file) as image:
                self._writer.add_image(f"sample/{number}", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path, after: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after + 1)
