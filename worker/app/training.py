"""Training in a worker: its one engine thread learns and serves in turns. torch is imported once something trains."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from worker.app.samples import Draw, sampled_by
from worker.app.served import Groundwork
from worker.app.settings import Settings
from worker.app.stores import build_bucket
from worker.app.training_facts import digest_of, facts_of, read_data
from worker.app.training_time import Meter, seconds_an_image
from worker.app.whole_models import check_room, too_large
from worker.catalog.call import Model
from worker.catalog.interface.adapters import takes_loras
from worker.catalog.interface.precisions import for_training
from worker.catalog.interface.sizes import size_bounds
from worker.catalog.licences import warning_of
from worker.core.device import DeviceInfo, LoadPlan
from worker.core.errors import OutOfMemory, UnsupportedModel, WorkerError
from worker.core.image import Raster
from worker.core.model import ModelFiles, ModelSpec, Task
from worker.core.result import Emit, Progress
from worker.core.training import TrainingOutcome, TrainingPlan, UntrainableClass
from worker.core.turn import StopSignal
from worker.core.version import CANDIDATE
from worker.engine.machine import cpu_info, only_cpu
from worker.engine.plan import make_plan
from worker.net.fetch import ImageFetcher
from worker.net.fetched import FetchedBytes
from worker.service.generation import GenerationService
from worker.service.introspection.answers import DeviceAnswers
from worker.service.limits.admission import Admission
from worker.service.limits.pools import Pools
from worker.service.local.engine_thread import EngineThread, ResidentEngine
from worker.service.local.provisioning import Provisioner
from worker.service.training.material import MAX_ARCHIVE_BYTES, Material
from worker.service.training.publishing import FOLDER, Publishing
from worker.service.training.trainings import Order, TrainingRules, Trainings, Trains
from worker.service.training.watching import Watching
from worker.service.versions.changes import By, VersionChanges
from worker.store.hub_datasets import HubDatasets
from worker.store.tuned import TunedModels

if TYPE_CHECKING:
    from worker.training.ranks import Ranks
    from worker.training.run import TrainingRun
    from worker.training.subject import Subject

T = TypeVar("T")
_ARCHIVE_S = 600.0
SHARED_TURN_S = 0.5  # after which others may have the device


@dataclass(frozen=True, slots=True)
class DeviceTrainer:
    """Trains on this worker's device. `turn_s` is for how long others wait for it; None is up to a checkpoint.

    `draw` is how serving generates a sample, with these adapters. `processes` is the most that take the steps of one.
    """

    provisioner: Provisioner
    engine: EngineThread
    pools: Pools
    draw: Draw
    device: Callable[[], DeviceInfo]
    turn_s: float | None = SHARED_TURN_S
    closing: Callable[[], bool] = lambda: False
    processes: int = 1

    async def train(self, order: Order, emit: Emit, stop: StopSignal) -> TrainingOutcome:
        """Train, or go on. Whatever ends it, a checkpoint stays. Raises WorkerError."""
        from worker.training.demands import check_demands
        from worker.training.run import TrainingRun

        check_demands(order.options)
        for_training(order.model, order.options.precision)
        await self.pools.headers.run(self._check_whole, order, place=_host(order.model))
        dataset = await self.pools.decoding.run(read_data, order)
        order.on_data(facts_of(dataset))
        pipeline = _pipeline(order.model, dataset.has_sources)
        files = await self.pools.downloads.run(self.provisioner.model_files, order.model, emit, stop)
        meter = Meter(self.engine)

        run = TrainingRun(
            order.folder,
            order.name,
            self._subject(order, files, pipeline, meter),
            order.options,
            dataset,
            meter.turn,
            self.drawing(order),
            float("inf") if self.turn_s is None else self.turn_s,
            order.on_kept,
            self.closing,
        )
        return await self.carried_out(run, order, meter, files.total_bytes, emit, stop)

    def drawing(self, order: Order) -> Callable[[Path | None, str, int, Raster | None], Awaitable[bytes]]:
        """Return what draws a sample as serving does, with the adapter in a file."""

        async def draw(file: Path | None, prompt: str, seed: int, source: Raster | None) -> bytes:
            fields: dict[str, Any] = {} if file is None else {order.options.field: [str(file)]}
            if order.options.precision is not None:
                fields["precision"] = order.options.precision
            return await self.draw(order.model, fields, prompt, seed, source)

        return draw

    async def carried_out(
        self, run: "TrainingRun", order: Order, meter: Meter, model_bytes: int, emit: Emit, stop: StopSignal
    ) -> TrainingOutcome:
        """Let a training take its course, and say what came of it."""

        def heard(progress: Progress) -> None:
            self.engine.watchdog.hear(progress, model_bytes, work="train")
            emit(progress)

        try:
            file = await run.run(heard, stop, order.minutes)
        finally:
            order.on_steps(len(run.losses), run.resumed_at, meter.seconds)
            await self.engine.call(_freed, "train: end")
        return TrainingOutcome(
            file=file,
            steps=len(run.losses),
            delivered=run.delivered_at,
            is_done=run.is_done,
            resumed_at=run.resumed_at,
            loss=run.losses[-1] if run.losses else None,
            held_out_loss=dict(run.held_out).get(run.delivered_at),
            dataset=facts_of(run.dataset),
            seconds=meter.seconds,
            beside=run.files[1:],
            note=run.note,
        )

    async def plan(self, order: Order, *, any_class: bool = False) -> TrainingPlan:
        """Say what a training would take; whether it fits is not looked at."""
        from worker.training.cuts import cuts_of
        from worker.training.demands import check_demands

        check_demands(order.options)
        for_training(order.model, order.options.precision)
        await self.pools.headers.run(self._check_whole, order, place=_host(order.model))
        dataset = await self.pools.decoding.run(read_data, order)
        if not any_class:
            _pipeline(order.model, dataset.has_sources)
        options, bounds = order.options, size_bounds(order.model)
        grid = bounds.native, bounds.multiple
        sizes = Counter(
            cuts_of(each.width, each.height, each.digest, options, grid)[0].size for each in dataset.examples
        )
        an_image = await self.pools.own.run(seconds_an_image, order)
        seconds = None if an_image is None else an_image * options.steps * options.images_a_step
        rounds = dataset.rounds(options)
        licence = await self.pools.headers.run(self.licence, order.model.spec, place=_host(order.model))
        from worker.app.training_memory import learnt_bytes  # not at a start: few plan a training

        learnt = await self.pools.headers.run(learnt_bytes, self.provisioner, order, place=_host(order.model))
        warning = warning_of(order.model.spec.id, licence)
        return TrainingPlan(
            order.name,
            order.model.spec.id,
            facts_of(dataset),
            sizes,
            rounds,
            licence,
            () if warning is None else (warning,),
            learnt_bytes=learnt,
            seconds=seconds,
            timed_by=None if seconds is None else "training",
        )

    def _check_whole(self, order: Order) -> None:
        """Raise UnsupportedModel where all weights are to be learnt of a family that is too large for that."""
        spec, row = order.model.spec, order.model.architecture
        if order.options.field != "model" or (row is not None and row.trained_whole):
            return
        bytes_ = self.provisioner.peek(spec.source, spec.variant).weight_bytes
        raise UnsupportedModel(too_large(spec.id, row.title if row else "an unknown family", bytes_), field="method")

    def licence(self, spec: ModelSpec) -> str | None:
        """Return the licence of a model by models.yaml or its page; None where neither tells. Blocking."""
        if spec.licence is not None:
            return spec.licence
        try:
            return self.provisioner.licence(spec.source, spec.variant)
        except WorkerError:
            return None  # a training is not refused for that

    def _subject(self, order: Order, files: ModelFiles, pipeline: str, meter: "Meter") -> "Subject":
        from worker.training.subject import Subject

        model, bounds, plans = order.model, size_bounds(order.model), list[LoadPlan]()
        family, digest = model.architecture.id if model.architecture else None, digest_of(order.model, files)

        def load() -> Any:
            from worker.engine.loader import load_pipeline, view

            plans.append(self._loading(order, files, meter.resident))
            return view(load_pipeline(plans[-1]), pipeline)

        def ranks() -> "Ranks":
            from worker.training.rank_child import Share
            from worker.training.ranks import ALONE, Leader

            count = self._processes(order)
            share = Share(
                *(plans[-1], pipeline, order.options, bounds.native, bounds.multiple, digest, order.data, order.folder)
            )
            return Leader(count, share) if count > 1 else ALONE

        saved = model.pipeline or pipeline
        return Subject(model.spec.id, digest, family, bounds.native, bounds.multiple, saved, load, ranks)

    def _processes(self, order: Order) -> int:
        """Return how many processes take the steps: no more than a step has images. Raises UnsupportedModel."""
        count, device = min(self.processes, order.options.batch_size), self.device()
        if count > 1 and device.type == "cuda":
            import torch

            if torch.cuda.device_count() < count:
                raise UnsupportedModel(
                    f"TRAINING_PROCESSES is {self.processes} and this worker has {torch.cuda.device_count()} GPUs, one "
                    "for each; the operator has to set it lower.",
                    field="batch_size",
                )
        return count

    def _loading(self, order: Order, files: ModelFiles, engine: ResidentEngine | None) -> LoadPlan:
        """Plan the trainer's own copy of the pipeline. Runs in the engine's thread."""
        self._processes(order)
        whole = order.options.field == "model"
        model = for_training(order.model, "fp32" if whole else order.options.precision)
        plan = self._plan(model, files)
        if (plan is None or plan.offload != "none") and engine is not None:
            for each in engine.resident_models:  # they come back with the next job for them
                engine.unload(each)
            plan = self._plan(model, files)
        if plan is None or plan.offload != "none":
            form = f"in {order.options.precision}" if order.options.precision else "as a whole"
            raise UnsupportedModel(
                f"{model.spec.id} does not fit into the memory of {self.device().name} {form}, and an offloaded model "
                "cannot be trained; use a larger device, a smaller model or a precision of fewer bits.",
                field="model",
            )
        if whole:
            check_room(model.spec.id, files, self.device())
        return plan

    def _plan(self, model: Model, files: ModelFiles) -> LoadPlan | None:
        try:
            return make_plan(model, files, self.device(), megapixels=1.0)
        except OutOfMemory:
            return None


def _pipeline(model: Model, edits: bool) -> str:
    """Return the class whose calls are learnt from.

    One that `edits`, where images have sources; else one that starts from an image, or one that starts from text.
    """
    tasks = (Task.IMAGE_EDITING,) if edits else (Task.IMAGE_TO_IMAGE, Task.TEXT_TO_IMAGE)
    for task in tasks:
        pipeline = model.pipeline_for(task) if task in model.tasks else None
        if pipeline is not None and takes_loras(model.call(task)):
            return pipeline
    if edits:
        raise UnsupportedModel(
            f"data has sources, and {model.spec.id} makes no image of another, or takes no LoRAs; train a model that "
            "edits images, or take the sources out.",
            field="data",
        )
    if Task.IMAGE_EDITING in model.tasks:
        raise UnsupportedModel(
            f"{model.spec.id} makes one image of another: give each image of data a source, as 1.source.png beside "
            "1.png or source beside image in a request.",
            field="data",
        )
    raise UntrainableClass(
        f"{model.spec.id} generates no images from an image or from text, or takes no LoRAs; train another model.",
        field="model",
    )


def _host(model: Model) -> str:
    source = model.spec.source
    return "" if source.is_local else source.host


def _freed(engine: ResidentEngine) -> None:
    """Give back what a training held of the device's memory. Runs in the engine's thread."""
    from worker.engine.devices import release_memory

    release_memory()


def build_trainings(
    settings: Settings,
    ground: Groundwork,
    trains: Trains,
    admission: Admission,
    device: DeviceAnswers,
    changes: VersionChanges,
) -> Trainings | None:
    """Return what runs trainings as jobs; None where the operator has not switched it on."""
    if settings.training == "off":
        return None
    volume, pools = settings.volume, ground.pools
    return Trainings(
        TrainingRules(settings.training_minutes, settings.gpu_price_per_hour),
        trains,
        material_of(settings, pools),
        Publishing(volume, pools, TunedModels(volume), build_bucket(settings)),
        ground.resolver,
        device,
        admission,
        ground.quotas,
        lambda entry, spec, name, stop: changes.record(entry, spec, CANDIDATE, By("training", name), stop),
        Watching(volume / FOLDER),
    )


def material_of(settings: Settings, pools: Pools) -> Material:
    """Return the ways of images to a training, with the guards of a request's links."""
    fetch = partial(ImageFetcher, allow_private=settings.allow_private_urls)
    return Material(
        settings.volume,
        pools,
        fetch(),
        fetch(deadline_s=_ARCHIVE_S, books=FetchedBytes(MAX_ARCHIVE_BYTES, least=MAX_ARCHIVE_BYTES)),
        HubDatasets(settings.hf_endpoint, offline=settings.offline).fetch,
    )


def device_trainer(
    settings: Settings, provisioner: Provisioner, engine: EngineThread, generation: GenerationService, pools: Pools
) -> DeviceTrainer:
    """Return what trains on this worker's device, and draws its samples as serving does."""
    return DeviceTrainer(
        provisioner,
        engine,
        pools,
        sampled_by(generation),
        lambda: probed(settings),
        None if settings.training == "exclusive" else SHARED_TURN_S,
        lambda: generation.admission.closing,
        settings.training_processes,
    )


def probed(settings: Settings, cards: bool = False) -> DeviceInfo:
    """Return the device that the engine would have, with all GPUs of this process if `cards` are asked for.

    torch alone is imported for a GPU, and nothing for a CPU.
    """
    if only_cpu(settings.device):
        return cpu_info()
    from worker.engine.devices import choose_device, probe, probe_all

    return (probe_all if cards else probe)(choose_device(settings.device))
