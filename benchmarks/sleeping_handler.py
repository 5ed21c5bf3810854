"""handler.py with an engine that sleeps 0.3 seconds for a job and gives a photo-like image of 1024 x 1024.

When each sleep began and ended goes to the file BENCH_SECONDS, a line for each, on time.monotonic's clock.
"""

import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.fakes.engine import FakeEngine  # noqa: E402 -- found only now
from worker.app import build  # noqa: E402
from worker.core.image import Raster  # noqa: E402
from worker.core.job import Job  # noqa: E402

SECONDS = 0.3


def photo() -> Raster:
    """Return soft shapes under the noise of a sensor: PNG makes two thirds of it."""
    x, y = np.meshgrid(np.linspace(0, 20, 1024), np.linspace(0, 20, 1024))
    waves = np.stack([np.sin(x) * np.cos(y), np.cos(x + y), np.sin(x * y / 5)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 3, waves.shape)
    return Raster("RGB", 1024, 1024, np.clip((waves + 1) * 127 + noise, 0, 255).astype(np.uint8).tobytes())


_IMAGE = photo()


def _sleep(job: Job, seed: int) -> Raster:
    began = time.monotonic()
    time.sleep(SECONDS)
    with Path(os.environ["BENCH_SECONDS"]).open("a") as file:
        file.write(f"{began} {time.monotonic()}\n")
    return _IMAGE


def _engine(*_: object) -> FakeEngine:
    engine = FakeEngine(_sleep, steps=1)
    engine.seconds, engine.load_s = (lambda images: SECONDS * images), 0.0
    return engine


build._diffusers_engine = _engine
runpy.run_path(str(PROJECT / "handler.py"), run_name="__main__")
