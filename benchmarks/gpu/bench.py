"""One model on one device: calls, their seconds, and the work that they cannot do without."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.models import Model, build, call
from worker.engine.levers.board import Board
from worker.engine.levers.row import Ground, Lever, compatible


@dataclass
class Scale:
    """How large, how often. `short` and `long` are the steps of two calls; their difference is the price of a step."""

    device: str
    tiny: bool
    size: int
    small: int
    short: int = 2
    long: int = 6
    batches: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32


TINY = {"tiny": True, "size": 64, "small": 64, "short": 1, "long": 2, "batches": (1, 2)}
REAL = {"tiny": False, "size": 1024, "small": 512}


@dataclass
class Bench:
    """A built model and what measures it. `clock` is in seconds."""

    model: Model
    scale: Scale
    clock: Callable[[], float] = time.perf_counter
    board: Board = field(default_factory=Board)
    build_s: float = 0.0
    pipe: Any = None

    def __enter__(self) -> "Bench":
        """Build the model."""
        started = self.clock()
        self.pipe = build(self.model, self.scale.device, self.scale.dtype, tiny=self.scale.tiny)
        self.sync()
        self.build_s = self.clock() - started
        return self

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self.pipe = None
        torch._dynamo.reset()
        if self.scale.device == "cuda":
            torch.cuda.empty_cache()

    @property
    def ground(self) -> Ground:
        """What levers stand on."""
        return Ground(self.pipe, self.scale.device)

    @property
    def part(self) -> Any:
        """The denoiser."""
        return getattr(self.pipe, self.model.part)

    def sync(self) -> None:
        """Wait for the device."""
        if self.scale.device == "cuda":
            torch.cuda.synchronize()

    def draw(self, steps: int, size: int | None = None, count: int = 1) -> Any:
        """Return the pixels of one call."""
        scale = self.scale
        return call(
            self.model,
            self.pipe,
            size=size or scale.size,
            steps=steps,
            count=count,
            device=scale.device,
            dtype=scale.dtype,
        )

    def seconds(self, steps: int, size: int | None = None, count: int = 1) -> float:
        """Return the seconds of one call, its pixels on the host."""
        self.sync()
        started = self.clock()
        self.draw(steps, size, count)
        self.sync()
        return self.clock() - started

    def pace(self, size: int | None = None, count: int = 1, runs: int = 2) -> dict[str, float]:
        """Return the seconds of a step, of what is around the steps, and of a whole call; warm, the best of `runs`."""
        short, long = self.scale.short, self.scale.long
        first = min(self.seconds(short, size, count) for _ in range(runs))
        second = min(self.seconds(long, size, count) for _ in range(runs))
        step = max(0.0, second - first) / (long - short)
        around = max(0.0, first - short * step)
        return {"step_s": step, "around_s": around, "call_s": around + step * self.model.steps, "images": count}

    @contextlib.contextmanager
    def having(self, levers: Sequence[Lever]) -> Iterator[None]:
        """Have these levers on, and none after it."""
        chosen = compatible(levers)
        self.board.settle(self.ground, chosen)
        try:
            with self.board.called(self.ground, chosen):
                yield
        finally:
            self.board.settle(self.ground, ())

    def flops(self) -> dict[str, float]:
        """Return the floating-point operations of a step and of a whole call, counted in two short calls."""
        counts = []
        for steps in (1, 2):
            counter = FlopCounterMode(display=False)
            with counter:
                self.draw(steps)
            counts.append(float(counter.get_total_flops()))
        step = counts[1] - counts[0]
        return {"step": step, "call": counts[0] + step * (self.model.steps - 1)}


def matmul_rate(device: str, dtype: torch.dtype, *, tiny: bool) -> float:
    """Return the operations a second of a large product of matrices: what this device can do at best."""
    side = 256 if tiny else 8192
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(4):
            left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * side**3 / (time.perf_counter() - started))
    return best


def psnr(image: Any, plain: Any) -> float | None:
    """Return the peak signal-to-noise ratio of two images of numbers from 0 to 1; None for equal ones."""
    difference = float(np.mean((np.asarray(image, np.float64) - np.asarray(plain, np.float64)) ** 2))
    return None if difference == 0 else float(-10 * np.log10(difference))
