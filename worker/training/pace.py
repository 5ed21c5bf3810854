"""How far a training is, in a sentence: its loss, its learning rate, and the time that is left."""

from collections.abc import Sequence

from worker.core.result import Progress
from worker.training.loss_plot import smoothed


def progress_of(losses: Sequence[float], of: int, rate: float, seconds_a_step: float) -> Progress:
    """Return the progress after as many steps as there are losses."""
    step = len(losses)
    left = _spoken(seconds_a_step * (of - step))
    return Progress("train", step, of, f"loss {smoothed(losses)[-1]:.4f}, learning rate {rate:.2g}, {left} left")


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
