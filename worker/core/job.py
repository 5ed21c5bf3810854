"""A request that was accepted: everything checked, no weights touched yet."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import takewhile
from typing import Any

from pydantic import JsonValue

from worker.core.adapter import Adapter, AdapterFiles, LoraFiles
from worker.core.call import Call
from worker.core.fingerprint import fingerprint
from worker.core.finishing import Finishing, FinishingFiles
from worker.core.image import MaskReading, Raster
from worker.core.model import LoraSpec, ModelFiles
from worker.core.pipeline import Form
from worker.core.prompt import PromptForm
from worker.core.quality import Quality
from worker.core.request import GenerationRequest, OutputOptions
from worker.core.turn import StopSignal
from worker.core.version import VersionChoice


@dataclass(frozen=True, slots=True)
class SchedulerChoice:
    """A job's own choice of sampling: a diffusers class, and options over the model's scheduler config.

    Without a `cls` it is the model's own class. `shift` is a flow's, whatever its name in the class.
    """

    name: str | None = None
    cls: str | None = None
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    schedule: str | None = None
    shift: float | None = None
    flow: bool = False  # the model predicts a flow: a class that also serves other models needs to know
    replaces: frozenset[str] = frozenset()  # the classes that `cls` can stand in for, beside itself

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """The fields that a caller sends for the same choice."""
        fields: dict[str, JsonValue] = {"scheduler": self.name, "schedule": self.schedule, "shift": self.shift}
        return {name: value for name, value in fields.items() if value is not None}


# The names of pipelines for the prompt, the first choice first.
PROMPT_PARAMETERS = ("prompt", "editing_prompt", "content_prompt")


@dataclass(frozen=True, slots=True)
class Media:
    """Images, or a video's frames, for one parameter of the pipeline's call."""

    parameter: str
    images: tuple[Raster, ...]
    form: Form
    field: str  # the request's field

    @property
    def is_single(self) -> bool:
        """True of one image: those of several jobs can go into one call."""
        return len(self.images) == 1 and self.form in ("image", "controls", "mask", "unmask")

    @property
    def outline(self) -> tuple[object, ...]:
        """All but the pixels: images of one call must agree in it."""
        sizes = [(image.mode, image.width, image.height) for image in self.images]
        return self.parameter, self.form, self.field, sizes


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """A job's videos: frames a second, and how many of those generated are wanted; None for all."""

    fps: float
    frames: int | None = None


# Marks a field in which jobs of one pipeline call may differ. They agree in all others, new fields of Job included.
OF_ONE_JOB: Mapping[str, bool] = {"of_one_job": True}


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted generation. `params` are effective pipeline parameters by their diffusers names."""

    id: str = field(metadata=OF_ONE_JOB)
    request: GenerationRequest = field(metadata=OF_ONE_JOB)
    call: Call
    prompt: str = field(metadata=OF_ONE_JOB)
    negative_prompt: str | None = field(metadata=OF_ONE_JOB)
    params: Mapping[str, JsonValue]
    scheduler: SchedulerChoice | None
    seeds: tuple[int, ...] = field(metadata=OF_ONE_JOB)
    media: tuple[Media, ...] = field(metadata=OF_ONE_JOB)
    output: OutputOptions = field(metadata=OF_ONE_JOB)
    stop: StopSignal = field(metadata=OF_ONE_JOB)
    warnings: tuple[str, ...] = field(default=(), metadata=OF_ONE_JOB)
    adapters: tuple[Adapter[Any], ...] = ()  # kind by kind, each in the order in which they were asked for
    finishing: Finishing = field(default_factory=Finishing)
    words: PromptForm | None = None  # the form in which the class reads prompts that the worker weighs; else None
    mixes: bool = False  # true if its prompts change from step to step, or are several
    generates: bool = True  # False at strength 0 or for an empty mask: the sent image comes back
    video: VideoRequest | None = None  # None for images
    quality: Quality = "exact"
    is_spare: bool = False  # nobody waits for it: it shares no call with others, and loads nothing
    choice: VersionChoice | None = field(default=None, metadata=OF_ONE_JOB)  # of a model that has versions
    mask_reading: MaskReading | None = field(default=None, metadata=OF_ONE_JOB)
    accepted_at: float = field(default_factory=time.monotonic, metadata=OF_ONE_JOB)

    @property
    def shares_a_call(self) -> bool:
        """True if other jobs may join the same pipeline call: images, each from one image at most, by one prompt."""
        alone = self.mixes or self.video is not None or self.is_profiled
        return not alone and all(media.is_single for media in self.media)

    @property
    def is_profiled(self) -> bool:
        """True if its answer has a profile, which is of no other job's work."""
        return self.request.profile

    @property
    def shared(self) -> tuple[object, ...]:
        """The values in which all jobs of one pipeline call agree."""
        common = [(item.name, getattr(self, item.name)) for item in fields(self) if "of_one_job" not in item.metadata]
        # A refiner works for one job at a time, and a profile is of one.
        own_key = self.id if self.finishing.refiner is not None or self.is_profiled else None
        # Own fields count by their outline: a call takes a negative prompt from all or none, and images of one size.
        return *common, own_key, self.negative_prompt is None, [media.outline for media in self.media]

    @property
    def megapixels(self) -> float:
        """The millions of pixels of one image, or of one frame."""
        usual = self.call.detection.native_size or 1024
        width, height = (
            side if isinstance(side := self.params.get(name), int) else usual for name in ("width", "height")
        )
        return width * height / 1e6

    @property
    def image(self) -> Raster | None:
        """The first image sent to start from, if any."""
        media = next((item for item in self.media if item.field in ("image", "images")), None)
        return media.images[0] if media else None

    @property
    def mask(self) -> Raster | None:
        """The mask of `image`: white where it is regenerated; None when all of it may be."""
        media = next((item for item in self.media if item.field == "mask_image"), None)
        return media.images[0] if media else None


@dataclass(frozen=True, slots=True)
class Batch:
    """The jobs of one pipeline call and their files: the jobs agree in everything but prompt, image and seeds."""

    jobs: tuple[Job, ...]
    files: ModelFiles
    adapters: tuple[AdapterFiles[Any], ...] = ()  # in the order of the first job's
    finishing: FinishingFiles = field(default_factory=FinishingFiles)
    # Each job's own LoRAs by its id, where jobs differ in them; `adapters` then has none.
    own_loras: Mapping[str, tuple[LoraFiles, ...]] = field(default_factory=dict)

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """Return one batch of the jobs of several with the same `batch_key`, each of which has one job."""
        first, jobs = batches[0], tuple(batch.jobs[0] for batch in batches)
        if len({batch.lora_key for batch in batches}) == 1:
            return replace(first, jobs=jobs)
        own = {batch.jobs[0].id: batch.loras for batch in batches}
        return replace(first, jobs=jobs, adapters=first.adapters_but_loras, own_loras=own)

    def alike(self) -> "Batch":
        """Return the first jobs that have the same LoRAs, as a batch that shares them."""
        if not self.own_loras:
            return self
        alone = [
            replace(self, jobs=(job,), adapters=(*self.own_loras[job.id], *self.adapters), own_loras={})
            for job in self.jobs
        ]
        return Batch.joined([*takewhile(lambda batch: batch.lora_key == alone[0].lora_key, alone)])

    @property
    def all_adapters(self) -> tuple[AdapterFiles[Any], ...]:
        """The adapters that any of its jobs has."""
        return *self.adapters, *(item for loras in self.own_loras.values() for item in loras)

    @property
    def loras(self) -> tuple[LoraFiles, ...]:
        """The LoRAs that all of its jobs have."""
        return tuple(item for item in self.adapters if isinstance(item, LoraFiles))

    @property
    def adapters_but_loras(self) -> tuple[AdapterFiles[Any], ...]:
        """The adapters of other kinds."""
        return tuple(item for item in self.adapters if not isinstance(item, LoraFiles))

    @property
    def lora_key(self) -> str:
        """The key in which batches agree that share their LoRAs."""
        specs = [item.adapter.spec for item in self.loras]
        return fingerprint([self.loras, specs], leave_out=_TRANSIENT) if specs else ""

    @property
    def mixes_loras(self) -> bool:
        """True if its job may share a call with jobs that have other LoRAs, or none."""
        return self.jobs[0].shares_a_call and all(item.keys.mixes for item in self.loras)

    def adapters_of(self, field: str) -> tuple[AdapterFiles[Any], ...]:
        """Return the adapters that came in one of a request's fields."""
        return tuple(item for item in self.adapters if item.adapter.spec.field == field)

    @property
    def batch_key(self) -> str:
        """The key in which two batches must agree to run together: jobs and files, with all of their fields.

        LoRAs do not count where each image of a call may have its own.
        """
        if self.mixes_loras:
            others = tuple(item for item in self.jobs[0].adapters if not isinstance(item.spec, LoraSpec))
            job = replace(self.jobs[0], adapters=others)
            batch = replace(self, jobs=(job,), adapters=self.adapters_but_loras)
        else:
            batch = self
        files = [getattr(batch, name) for name in self.__dataclass_fields__ if name != "jobs"]
        return fingerprint([batch.jobs[0].shared, files], leave_out=_TRANSIENT)

    def check(self) -> None:
        """Raise JobCancelled or JobTimeout when every job has to stop: one alone does not take the others with it."""
        reasons = [job.stop.reason for job in self.jobs]
        if None not in reasons and (last := reasons[-1]) is not None:
            raise last


# Left out of the key: how a file was fetched, facts that its digest implies, and facts that the jobs hold too.
_TRANSIENT: Mapping[type, frozenset[str]] = {
    ModelFiles: frozenset({"bytes_downloaded"}),
    AdapterFiles: frozenset({"adapter"}),
    LoraFiles: frozenset({"adapter", "keys", "scaling", "trigger_words"}),
}
