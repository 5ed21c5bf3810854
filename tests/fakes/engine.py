"""An engine that draws flat images at once, and does as it is told: wait, hang, fail. No torch."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.asking import perform
from worker.app.build import Worker, build_worker
from worker.app.settings import Settings
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import JobCancelled, OutOfMemory, WorkerError
from worker.core.image import Raster
from worker.core.job import Batch, Job
from worker.core.model import ModelFiles
from worker.core.profile import OperatorCost, Profile
from worker.core.quality import LeverReport
from worker.core.result import Artifact, Emit, EngineReport, Progress
from worker.core.turn import StopSignal
from worker.wire.request import decode_envelope, decode_generation

TRACED = Profile(3, 21, (OperatorCost("aten::mm", 21, 1.25, 0.5),), trace=b"a trace")
"""What it says of a job that asks for a profile."""
Pixels = Callable[[Job, int], Raster]


def flat(job: Job, seed: int) -> Raster:
    """Return one colour, a function of the seed, at the job's size."""
    width, height = int(str(job.params.get("width") or 64)), int(str(job.params.get("height") or 64))
    return Raster("RGB", width, height, bytes([seed % 251, seed // 251 % 251, 128]) * (width * height))


class FakeEngine:
    """Counts what it runs. `steps` are taken with the job's stop signal looked at in each, as the real engine does.

    Clear `gate` and a run waits inside its step until it is set again or the job has to stop; clear `alive` and it
    hangs there, whatever the job wants, until `alive` is set.
    """

    def __init__(self, pixels: Pixels = flat, steps: int = 3) -> None:
        self.pixels = pixels
        self.steps = steps
        self.gate = threading.Event()
        self.alive = threading.Event()
        self.gate.set()
        self.alive.set()
        self.load_seconds = 0.0
        """How long a run loads before its steps; that is not interrupted."""
        self.failures: list[BaseException] = []
        """Raised by the next runs, one each."""
        self.load_failures: list[BaseException] = []
        """Raised by the next preloads, one each."""
        self.poison: dict[str, WorkerError] = {}
        """Prompts that fail a whole call."""
        self.spoiled: dict[str, WorkerError] = {}
        """Prompts that fail alone."""
        self.fails: Callable[[Job], WorkerError | None] = lambda job: None
        """The error of a job that is to fail, by anything that it has."""
        self.seconds_of: Callable[[Job], float] | None = None
        """The seconds that a call reports, by its first job; else by `seconds`."""
        self.takes = 64
        """How many images go into one call."""
        self.memory = 64
        """For how many images of one call it suffices."""
        self.seconds: Callable[[int], float] = lambda images: 0.5
        """The seconds that a call of so many images reports."""
        self.standing = ""
        """The key that a run reports of its model's files, device and libraries."""
        self.load_s = 0.25
        """The seconds of loading that a run reports."""
        self.ran: list[Job] = []
        self.calls: list[list[str]] = []
        """The prompts of each run."""
        self.loading = threading.Event()
        """Set once a run has begun to load."""
        self.inside = threading.Event()
        """Set while a run is in its steps."""
        self.overlaps = 0
        self.resident: list[str] = []
        self.has: Callable[[Job], bool] = lambda job: True
        """Whether a resident model is there in a job's version, too."""
        self.levers: tuple[LeverReport, ...] = ()
        self.tries: list[str] = []
        """What became of each try of a way to generate faster: done or stopped."""
        self.to_try = 0
        """How many ways there are still to be tried; each waits inside until `tried` is set."""
        self.tried = threading.Event()
        self.tried.set()
        self.trying = threading.Event()
        """Set while one is tried."""
        self._busy = threading.Lock()

    @property
    def resident_models(self) -> list[str]:
        """Ids of the models on the device."""
        return self.resident

    def holds(self, batch: Batch) -> bool:
        """True if the batch's model, in its version, is to be taken for loaded."""
        return batch.jobs[0].call.spec.id in self.resident and self.has(batch.jobs[0])

    def device_info(self, *, cards: bool = False) -> DeviceInfo:
        """Return a GPU that does not exist."""
        return DeviceInfo("cuda", "Fake GPU", 24 * 2**30, 20 * 2**30)

    def run(self, batch: Batch, emit: Emit) -> EngineReport:
        """Draw the first jobs of the batch, as many as one call takes."""
        if not self._busy.acquire(blocking=False):
            self.overlaps += 1
            raise AssertionError("two runs at once")
        jobs = [
            job for index, job in enumerate(batch.jobs) if not index or _images(batch.jobs[: index + 1]) <= self.takes
        ]
        batch = replace(batch, jobs=tuple(jobs))
        job = jobs[0]
        self.ran += jobs
        self.calls.append([each.prompt for each in jobs])
        try:
            emit(Progress("load", 0, 1, job.call.spec.id))
            self.loading.set()
            time.sleep(self.load_seconds)
            emit(Progress("load", 1, 1, job.call.spec.id))
            self.inside.set()
            for step in range(self.steps):
                while not (self.gate.wait(0.005) and self.alive.is_set()):
                    if self.alive.wait(0.005):
                        batch.check()
                batch.check()
                preview = Raster("RGB", 8, 8, bytes(192)) if job.request.previews else None
                emit(Progress("inference", step + 1, self.steps, preview=preview, jobs=len(jobs)))
            if self.failures:
                raise self.failures.pop(0)
            if _images(jobs) > self.memory:
                raise OutOfMemory("Too many.")
            for each in jobs:
                if (error := self.poison.get(each.prompt) or self.fails(each)) is not None:
                    raise error
            self.resident = [job.call.spec.id]
            outcomes = tuple(self.spoiled.get(each.prompt) or self._artifacts(each) for each in jobs)
            seconds = self.seconds_of(job) if self.seconds_of else self.seconds(_images(jobs))
            profile = TRACED if job.is_profiled else None
            return EngineReport(
                outcomes, load_s=self.load_s, inference_s=seconds, standing=self.standing, profile=profile
            )
        finally:
            self.loading.clear()
            self.inside.clear()
            self._busy.release()

    def _artifacts(self, job: Job) -> tuple[Artifact, ...]:
        return tuple(self._artifact(job, seed) for seed in job.seeds)

    def _artifact(self, job: Job, seed: int) -> Artifact:
        if job.video is None:
            return Artifact(job.id, self.pixels(job, seed), seed)
        count = int(str(job.params.get("num_frames") or 4))
        frames = tuple(self.pixels(job, seed + index) for index in range(count))
        return Artifact(job.id, frames[0], seed, frames, job.video.fps)

    def improve(self, stop: StopSignal, emit: Emit) -> bool:
        """Try one way to generate faster, in steps."""
        if not self.to_try:
            return False
        if not self._busy.acquire(blocking=False):
            raise AssertionError("a try beside a run")
        self.trying.set()
        try:
            while not self.tried.wait(0.005):
                emit(Progress("inference", 0, 1))
                stop.check()
            stop.check()
        except JobCancelled:
            self.tries.append("stopped")
            raise
        finally:
            self.trying.clear()
            self._busy.release()
        self.tries.append("done")
        self.to_try -= 1
        return True

    def preload(self, model: KnownModel, files: ModelFiles, emit: Emit) -> LoadPlan:
        """Say that the model is there now."""
        if self.load_failures:
            raise self.load_failures.pop(0)
        self.resident = [model.spec.id]
        return LoadPlan(Path(), model.detection.pipeline or "", "float32", "cuda", "none", 2 * 2**30, 2**30)

    def unload(self, model: str) -> int:
        """Say that it is gone."""
        found = self.resident.count(model)
        self.resident = [name for name in self.resident if name != model]
        return found


def _images(jobs: Sequence[Job]) -> int:
    return sum(len(job.seeds) for job in jobs)


class Builder:
    """What `build_worker` takes to make an engine; counts how often it was asked to."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.built = 0
        self.seconds = 0.0
        """How long building takes."""
        self.gate = threading.Event()
        """Building waits until this is set; it is at first."""
        self.gate.set()
        self.failures: list[BaseException] = []
        """Raised by the next builds, one each."""

    def __call__(self) -> FakeEngine:
        """Hand out the engine."""
        self.built += 1
        time.sleep(self.seconds)
        self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.engine


_ids = itertools.count()


def fresh_id() -> str:
    """Return a job id that was never used: the same job delivered twice would be answered from memory."""
    return f"job-{next(_ids)}"


def shelf(root: Path) -> Path:
    """Write a models.yaml whose models can be accepted without a weight or a network; return its path."""
    folder = root / "models/sd1"
    for name, content in {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
        "unet/config.json": {"_class_name": "UNet2DConditionModel", "sample_size": 8, "cross_attention_dim": 768},
        "vae/config.json": {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 8]},
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"},
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    lightning = {"lora": "org/fast#8steps.safetensors", "steps": 8, "defaults": {"guidance_scale": 1.0}}
    models = {
        "tiny": {
            "source": "file:models/sd1",
            "aliases": ["small"],
            "tasks": ["text-to-image", "image-to-image"],
            "defaults": {"num_inference_steps": 5},
            "limits": {"max_side": 256},
        },
        "any": {"source": "file:models/sd1"},
        "org/sdxl": {
            "architecture": "sdxl",
            "tasks": ["text-to-image"],
            "defaults": {"guidance_scale": 6.5, "negative_prompt": "blurry"},
            "limits": {"max_images": 2},
        },
        "fast": {"source": "org/fast-sdxl", "architecture": "sdxl", "tasks": ["text-to-image"], "lightning": lightning},
        "editor": {"source": "org/editor", "architecture": "qwen-image-edit", "tasks": ["image-editing"]},
        "video": {
            "source": "org/video",
            "architecture": "cogvideox",
            "defaults": {"num_frames": 9},
            "limits": {"max_side": 256},
        },
        "prior": {
            "source": "org/prior",
            "architecture": "kandinsky-2.2",
            "pipeline": "KandinskyV22PriorPipeline",
        },
    }
    path = root / "models.yaml"
    path.write_text(json.dumps({"models": models}))
    return path


@dataclass(frozen=True)
class ServerContext:
    """A worker over the shelf with a fake engine."""

    worker: Worker
    builder: Builder

    @property
    def engine(self) -> FakeEngine:
        """The engine, whether or not the worker has asked for it yet."""
        return self.builder.engine

    async def ask(self, _id: str | None = None, _emit: Emit = lambda progress: None, **payload: Any) -> dict[str, Any]:
        """Return the answer to one input, under a new id unless one is given."""
        return await perform(self.worker, payload, _id or fresh_id(), _emit)

    async def draw(self, _id: str | None = None, **payload: Any) -> dict[str, Any]:
        """Return the answer to a generation with some prompt."""
        return await self.ask(_id, **{"prompt": "an apple", **payload})

    async def accept(self, **fields: Any) -> Job:
        """Return what the service makes of a request, without running it."""
        request = decode_generation(decode_envelope({"prompt": "an apple", **fields}).fields)
        return await self.worker.operations.generation.accept(request, fresh_id())


def make_context(root: Path, engine: FakeEngine | None = None, **changes: Any) -> ServerContext:
    """Return a context with its own shelf in `root`. It is offline: what would ask the Hub fails at once."""
    settings = Settings(
        **{
            "models_yaml": shelf(root),
            "default_model": "tiny",
            "volume_dir": root / "volume",
            "outputs_dir": root / "outputs",
            "device": "cpu",
            "warm_up": False,
            "OFFLINE": True,
            **changes,
        }
    )
    builder = Builder(engine)
    return ServerContext(build_worker(settings, build_engine=builder), builder)
