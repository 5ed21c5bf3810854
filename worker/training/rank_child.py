"""Another process of a training: its own pipeline, on its own device, and steps as it is told to."""

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from worker.core.device import LoadPlan
from worker.core.training import TrainingOptions
from worker.engine.loader import load_pipeline, view
from worker.training.checkpoint import Checkpoint
from worker.training.dataset import read_as_asked, read_dataset
from worker.training.lessons import Lessons
from worker.training.ranks import joined_by
from worker.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Share:
    """What a process needs to take part: the model as it is loaded, and where the training's files are."""

    plan: LoadPlan
    pipeline: str
    options: TrainingOptions
    side: int
    multiple: int
    digest: str  # of the model
    data: Path
    folder: Path

    def __call__(self, number: int, count: int, port: int, orders: Connection) -> None:
        """Take part until the first process leaves. What it raises ends this process alone."""
        if self.plan.device == "cuda":
            torch.cuda.set_device(number)
        options, place = self.options, self.folder / "class"
        trainer = Trainer(view(load_pipeline(self.plan), self.pipeline), options, self.side, self.multiple)
        examples, _ = read_as_asked(self.data, options).split(options.held_out)
        of_class = read_dataset(place, caption=options.class_prompt).examples if options.class_prompt else ()
        lessons = Lessons(self.folder / "lessons", self.digest)
        trainer.prepare(examples, (), lessons, lambda done, total: None, of_class)
        trainer.begin(Checkpoint.latest(self.folder / "checkpoints"))
        orders.send_bytes(b"ready")
        try:
            trainer.share(joined_by(number, count, port))
            while orders.recv_bytes():
                trainer.step()
        except (EOFError, ConnectionError):
            return
