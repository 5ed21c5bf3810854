"""What a job needs of a replica: bytes by the headers, memory by the plan, seconds as they were measured."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from worker.catalog.detectors.storage import outlined_files
from worker.core.call import KnownModel
from worker.core.device import DeviceInfo, MemoryWays
from worker.core.errors import WorkerError
from worker.core.job import Job
from worker.core.model import ModelFiles, ModelSource, Outline
from worker.remote.replica import Needs, Weights

GIB = 2**30
# For which a job waits for headers that nobody has asked for yet. Without them sizes are guessed.
LEARN_S = 5.0
_ASK_AGAIN_S = 300.0
_MOST_KNOWN = 4_096
_A_GPU = DeviceInfo("cuda", "a GPU", 0, 0)  # of any size: only the type counts

AskOutline = Callable[[ModelSource, str | None], Awaitable[Outline]]


class Ways(Protocol):
    """The plan's arithmetic, which is the engine's: see worker/engine/plan.py."""

    def __call__(
        self, model: KnownModel, files: ModelFiles, device: DeviceInfo, *, megapixels: float, beside_bytes: int = 0
    ) -> MemoryWays:
        """Return the ways to load `model`, fastest first, with the bytes that each needs."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    """An outline without its header's tensors, of which there may be thousands; None for one that was not to be had."""

    weight_bytes: int | None
    files: ModelFiles | None
    is_local: bool
    at: float


class NeedsReader:
    """Reads the needs of jobs. Each header is asked of its source once. For one event loop."""

    def __init__(self, ask: AskOutline, source_of: Callable[[str], ModelSource], ways: Ways) -> None:
        self._ask = ask
        self._source_of = source_of
        self._ways = ways
        self._known: dict[str, _Known] = {}

    async def learn(self, job: Job) -> None:
        """Ask for the headers of a job's model and adapters that are not known yet. Raises nothing."""
        await self.learn_of(job.call, [adapter.spec.model for adapter in job.adapters])

    async def learn_of(self, model: KnownModel, adapters: Sequence[str] = ()) -> None:
        """Do the same for a model, and adapters by their references."""
        spec = model.spec
        asked = [self._learn(spec.served_name, spec.source, spec.variant)]
        asked += [self._learn(name, None, None) for name in dict.fromkeys(adapters)]
        await asyncio.gather(*asked)

    def __call__(self, job: Job, seconds: float) -> Needs:
        """Return the needs of `job`, which takes `seconds` an image by what is known of its model."""
        names = tuple(dict.fromkeys(adapter.spec.model for adapter in job.adapters))
        controls = {adapter.spec.model for adapter in job.adapters if adapter.spec.field == "controlnets"}
        beside = sum(self._weights(name).size or 0 for name in controls)
        needs = self.of_model(job.call, seconds, megapixels=job.megapixels, beside_bytes=beside)
        adapters = tuple(map(self._weights, names))
        count = len(job.seeds)
        return replace(needs, weights=(*needs.weights, *adapters), images=count, inference_s=seconds * count)

    def of_model(
        self, model: KnownModel, seconds: float, *, megapixels: float | None = None, beside_bytes: int = 0
    ) -> Needs:
        """Return the needs of an image of `model`: of its usual size by default, without adapters."""
        spec, known = model.spec, self._known.get(model.spec.served_name)
        size = megapixels or (model.detection.native_size or 1024) ** 2 / 1e6
        memory: MemoryWays = ()
        if known is not None and known.files is not None:
            memory = self._ways(model, known.files, _A_GPU, megapixels=size, beside_bytes=beside_bytes)
        return Needs(
            model=spec.id,
            tier=spec.tier,
            # Over several GPUs it is what they have together, and a replica tells of one.
            vram_bytes=None if spec.min_vram_gb is None or spec.device_map else round(spec.min_vram_gb * GIB),
            memory=memory,
            weights=(replace(self._weights(spec.served_name), name=spec.id),),
            megapixels=size,
            inference_s=seconds,
        )

    def _weights(self, name: str) -> Weights:
        known = self._known.get(name)
        return Weights(name) if known is None else Weights(name, known.weight_bytes, everywhere=known.is_local)

    async def _learn(self, name: str, source: ModelSource | None, variant: str | None) -> None:
        known = self._known.get(name)
        if known is not None and (known.weight_bytes is not None or time.monotonic() - known.at < _ASK_AGAIN_S):
            return
        size, files = None, None
        try:
            source = source or self._source_of(name)
            async with asyncio.timeout(LEARN_S):
                outline = await self._ask(source, variant)
            size, files = outline.weight_bytes or None, outlined_files(source, outline)
        except (WorkerError, TimeoutError):
            pass  # the replica will say what is wrong with it, if anything is
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[name] = _Known(size, files, source is not None and source.is_local, time.monotonic())
