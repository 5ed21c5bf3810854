"""What a gateway knows of a job before it is placed: bytes by the headers, memory by the worker's own plan."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.core.device import DeviceInfo
from worker.core.errors import SourceError
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec, Outline, TensorIndex
from worker.engine.plan import memory_ways
from worker.remote.needs import NeedsReader
from worker.remote.placement import place
from worker.remote.replica import ReplicaState

GB = 10**9


@dataclass
class Known:
    """A model of models.yaml."""

    spec: ModelSpec
    detection: Detection


FLUX = Known(
    ModelSpec(id="flux", source=ModelSource(scheme="hf", locator="org/flux"), tier="L40S", min_vram_gb=16),
    Detection(kind=Kind.PIPELINE, format="diffusers", architecture="flux1", native_size=1024, activation_gb_per_mp=3.0),
)


class Sources:
    """Answers for headers, and counts who asked."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.asked: list[str] = []

    async def ask(self, source: ModelSource, variant: str | None) -> Outline:
        self.asked.append(source.locator)
        if source.locator not in self.sizes:
            raise SourceError(f"{source.locator} is not to be had")
        return Outline(weight_bytes=self.sizes[source.locator])

    def reader(self) -> NeedsReader:
        return NeedsReader(self.ask, lambda name: ModelSource(scheme="hf", locator=name), memory_ways)


async def test_a_model_has_its_bytes_and_the_plans_ladder_once_its_header_was_read() -> None:
    sources = Sources({"org/flux": 24 * GB})
    reader = sources.reader()
    before = reader.of_model(FLUX, 6.0)
    assert (before.weights[0].size, before.memory) == (None, ())
    await reader.learn_of(FLUX)
    needs = reader.of_model(FLUX, 6.0)
    assert needs.weights[0].size == 24 * GB
    assert [offload for offload, _ in needs.memory] == ["none", "model", "sequential"]
    whole = 24 * GB + int(3.0 * 2**30 * 1024**2 / 1e6)
    assert whole <= needs.memory[0][1] < whole + 2**30
    assert (needs.tier, needs.vram_bytes, needs.inference_s) == ("L40S", 16 * 2**30, 6.0)
    larger = reader.of_model(FLUX, 6.0, megapixels=4.0, beside_bytes=5 * GB)
    assert larger.memory[0][1] - needs.memory[0][1] > 5 * GB + 8 * GB


async def test_a_file_beside_models_yaml_is_at_every_replica() -> None:
    reader = Sources({"models/demo": GB}).reader()
    spec = ModelSpec(id="demo", source=ModelSource(scheme="file", locator="models/demo"))
    demo = Known(spec, FLUX.detection)
    await reader.learn_of(demo)
    weights = reader.of_model(demo, 1.0).weights
    assert [(part.size, part.everywhere) for part in weights] == [(GB, True)]
    (choice,) = place(reader.of_model(demo, 1.0), [ReplicaState(name="a")])
    assert choice.nearness == "disk"


async def test_each_header_is_asked_for_once() -> None:
    sources = Sources({"org/flux": 24 * GB, "org/style": GB // 4})
    reader = sources.reader()
    for _ in range(3):
        await reader.learn_of(FLUX, ["org/style", "org/style"])
    assert sorted(sources.asked) == ["org/flux", "org/style"]


async def test_one_that_is_not_to_be_had_is_not_asked_for_with_every_job() -> None:
    sources = Sources({"org/flux": 24 * GB})
    reader = sources.reader()
    for _ in range(3):
        await reader.learn_of(FLUX, ["org/gone"])
    assert sources.asked.count("org/gone") == 1


async def test_a_source_that_hangs_holds_no_job_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.remote.needs.LEARN_S", 0.01)

    async def hang(source: ModelSource, variant: str | None) -> Outline:
        await asyncio.sleep(60)
        raise AssertionError

    reader = NeedsReader(hang, lambda name: ModelSource(scheme="hf", locator=name), memory_ways)
    await reader.learn_of(FLUX)
    assert reader.of_model(FLUX, 6.0).weights[0].size is None


async def test_a_quantized_file_is_counted_as_it_lies_in_memory() -> None:
    header = TensorIndex({"a.weight": ("BF16", (1000, 1000))}, {}, "safetensors", 2_000_100)

    async def ask(source: ModelSource, variant: str | None) -> Outline:
        return Outline(header=header, weight_bytes=header.weight_bytes)

    reader = NeedsReader(ask, lambda name: ModelSource(scheme="hf", locator=name), memory_ways)
    await reader.learn_of(FLUX)
    device = DeviceInfo("cuda", "x", 0, 0)
    files = ModelFiles(root=Path("org/flux"), total_bytes=2_000_000, parameters={"model": 1_000_000})
    assert reader.of_model(FLUX, 1.0).memory == memory_ways(FLUX, files, device, megapixels=1024**2 / 1e6)
