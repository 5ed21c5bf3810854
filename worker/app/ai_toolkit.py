"""ai-toolkit beside this worker's own trainer: where the operator has set it up, and it is asked for or needed."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from worker.app.settings import Settings, process_environment
from worker.app.training import DeviceTrainer
from worker.app.training_facts import digest_of, facts_of, read_data
from worker.app.training_time import Meter
from worker.catalog.call import Model
from worker.catalog.families.row import Architecture
from worker.catalog.interface.sizes import size_bounds
from worker.core.adapter import Adapter, LoraFiles
from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.model import LoraSpec, ModelFiles, ModelSpec
from worker.core.result import Emit
from worker.core.training import TrainingOutcome, TrainingPlan, UntrainableClass
from worker.core.turn import StopSignal
from worker.service.local.weights import examine_lora
from worker.service.training.trainings import Order

if TYPE_CHECKING:
    from worker.training.ai_toolkit.config import Base
    from worker.training.ai_toolkit.process import Toolkit

NAME = "ai-toolkit"
# What a process needs of the worker's environment to find programs, libraries and the GPU; no proxy, no token, no key.
_HANDED_ON = (
    "PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS",
)  # fmt: skip
_DISTILLED_STEPS = 8  # at most so many are the default of a model that was distilled


@dataclass(frozen=True, slots=True)
class Trainers:
    """This worker's own trainer, and ai-toolkit where `toolkit` is set up."""

    own: DeviceTrainer
    toolkit: "ToolkitTrainer | None" = None

    async def train(self, order: Order, emit: Emit, stop: StopSignal) -> TrainingOutcome:
        """Train, or go on, by the trainer that is asked for. Whatever ends it, the last checkpoint stays."""
        chosen = self._chosen(order)
        if chosen is not None:
            return await chosen.train(_for_toolkit(order), emit, stop)
        try:
            return await self.own.train(order, emit, stop)
        except UntrainableClass:
            if not self._may_pass_on(order) or self.toolkit is None:
                raise
        (order.folder / "training.json").unlink(missing_ok=True)  # it has learnt nothing
        return await self.toolkit.train(_for_toolkit(order), emit, stop)

    async def plan(self, order: Order) -> TrainingPlan:
        """Say what a training would take; whether it fits is not looked at."""
        chosen = self._chosen(order)
        if chosen is None:
            try:
                return await self.own.plan(order)
            except UntrainableClass:
                if not self._may_pass_on(order) or self.toolkit is None:
                    raise
                chosen = self.toolkit
        return await chosen.plan(_for_toolkit(order))

    def licence(self, spec: ModelSpec) -> str | None:
        """Return the licence of a model; None where neither models.yaml nor its page tells. Blocking."""
        return self.own.licence(spec)

    def _chosen(self, order: Order) -> "ToolkitTrainer | None":
        """Return ai-toolkit where it is asked for, or began this training. Raises InvalidRequest."""
        asked = order.options.trainer
        if asked == NAME and self.toolkit is None:
            raise InvalidRequest(
                "trainer=ai-toolkit is not set up on this worker; leave it out, or let the operator set AI_TOOLKIT.",
                field="trainer",
            )
        if asked == NAME or (self._may_pass_on(order) and (order.folder / NAME).is_dir()):
            return self.toolkit
        return None

    def _may_pass_on(self, order: Order) -> bool:
        return order.options.trainer is None and self.toolkit is not None and _arch(order.model) is not None


@dataclass(frozen=True, slots=True)
class ToolkitTrainer:
    """Trains by ai-toolkit, with the data, samples and device of this worker's own trainer."""

    own: DeviceTrainer
    toolkit: "Toolkit"

    async def train(self, order: Order, emit: Emit, stop: StopSignal) -> TrainingOutcome:
        """Train, or go on. Whatever ends it, the last save stays. Raises WorkerError."""
        from worker.training.ai_toolkit.config import check_data, check_root
        from worker.training.ai_toolkit.run import ToolkitRun
        from worker.training.demands import check_demands
        from worker.training.subject import Subject

        own, model = self.own, order.model
        architecture = self._checked(order)
        check_demands(order.options)
        dataset = await own.pools.decoding.run(read_data, order)
        order.on_data(facts_of(dataset))
        check_data(dataset)
        files = await own.pools.downloads.run(own.provisioner.model_files, model, emit, stop)
        check_root(files.root, model.spec.id)
        meter, bounds = Meter(own.engine), size_bounds(model)

        def clear() -> None:
            if meter.resident is not None and not self.toolkit.on_cpu:
                for each in meter.resident.resident_models:  # they come back with the next job for them
                    meter.resident.unload(each)

        run = ToolkitRun(
            order.folder,
            order.name,
            Subject(
                *(model.spec.id, digest_of(model, files), architecture.id, bounds.native, bounds.multiple),
                pipeline="",  # it delivers no whole model
                load=_nothing,
            ),
            order.options,
            dataset,
            meter.turn,
            own.drawing(order),
            on_kept=order.on_kept,
            closing=own.closing,
            toolkit=self.toolkit,
            base=self._base(model, architecture, files, bounds.native),
            clear=clear,
            check=lambda file: _check_landing(files.root, file, model.spec.id),
        )
        return await own.carried_out(run, order, meter, files.total_bytes, emit, stop)

    async def plan(self, order: Order) -> TrainingPlan:
        """Say what a training would take; whether it fits is not looked at."""
        self._checked(order)
        return await self.own.plan(order, any_class=True)

    def _checked(self, order: Order) -> Architecture:
        """Return the model's family. Raises UnsupportedModel, InvalidRequest for what cannot be said to ai-toolkit."""
        from worker.training.ai_toolkit.config import check_sayable

        fault, spec, architecture = self.toolkit.fault(), order.model.spec, order.model.architecture
        if fault is not None:
            raise UnsupportedModel(f"trainer=ai-toolkit cannot be used: {fault}; tell the operator.", field="trainer")
        if architecture is None or _arch(order.model) is None:
            raise UnsupportedModel(
                f"{spec.id} is of no family that ai-toolkit can be given as this worker has it; send trainer=worker.",
                field="model",
            )
        if _is_distilled(order.model, architecture) or spec.variant is not None:
            what = "of few steps" if spec.variant is None else f"whose weights are the variant {spec.variant}"
            raise UnsupportedModel(
                f"{spec.id} is a model {what}, which ai-toolkit cannot be given as it is; train its base, or send "
                "trainer=worker.",
                field="model",
            )
        check_sayable(order.options, is_flow=architecture.noise == "flow")
        return architecture

    def _base(self, model: Model, architecture: Architecture, files: ModelFiles, native: int) -> "Base":
        from worker.training.ai_toolkit.config import Base

        is_v = model.detection.prediction_type == "v_prediction"
        arch = architecture.ai_toolkit or ""
        return Base(files.root.resolve(), arch, native, architecture.noise == "flow", is_v, self.toolkit.on_cpu)


def build_trainers(settings: Settings, own: DeviceTrainer) -> Trainers:
    """Return the trainers of this worker."""
    if settings.ai_toolkit is None:
        return Trainers(own)
    from worker.training.ai_toolkit.process import Toolkit

    folder = settings.ai_toolkit
    choices = [settings.ai_toolkit_python] if settings.ai_toolkit_python else [folder / "venv", folder / ".venv"]
    pythons = [each if each.is_file() else each / "bin/python" for each in choices if each is not None]
    python = next((each for each in pythons if each.is_file()), pythons[0])
    on_cpu = own.device().type == "cpu"
    return Trainers(own, ToolkitTrainer(own, Toolkit(folder.resolve(), python, _environment(settings), on_cpu)))


def _environment(settings: Settings) -> Mapping[str, str]:
    home = settings.volume / NAME
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    mine = {name: value for name, value in process_environment().items() if name in _HANDED_ON}
    mine |= {"HOME": str(home.resolve()), "HF_HOME": str(home.resolve() / "huggingface"), "DISABLE_TELEMETRY": "YES"}
    mine |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if settings.offline:
        mine |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if settings.device == "cpu":
        mine["CUDA_VISIBLE_DEVICES"] = ""
    return mine


def _for_toolkit(order: Order) -> Order:
    return replace(order, options=order.options.model_copy(update={"trainer": NAME}))


def _arch(model: Model) -> str | None:
    return model.architecture.ai_toolkit if model.architecture else None


def _is_distilled(model: Model, architecture: Architecture) -> bool:
    steps = architecture.variants.get(model.detection.variant or "", {}).get("num_inference_steps")
    return isinstance(steps, int) and steps <= _DISTILLED_STEPS


def _nothing() -> None:
    """Load nothing: its process does."""


def _check_landing(root: Path, file: Path, model: str) -> None:
    from worker.training.ai_toolkit.landing import check_landing

    seen = examine_lora(file)
    files = ModelFiles(file, file.stat().st_size)
    adapter = Adapter(LoraSpec(model=file.name))
    lora = LoraFiles(adapter, files, seen.detection, seen.sha256, keys=seen.keys, scaling=seen.scaling)
    check_landing(root, lora, model)
