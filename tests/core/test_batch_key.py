"""Which jobs may be drawn in one call: those that agree in all but what is explicitly each one's own."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from worker.catalog.call import Model, ModelCall
from worker.catalog.interface.sizes import size_bounds
from worker.core.adapter import (
    Adapter,
    AdapterFiles,
    Control,
    ControlCall,
    ControlNetSpec,
    EmbeddingSpec,
    LoraFiles,
    VaeSpec,
)
from worker.core.fingerprint import fingerprint
from worker.core.image import Raster
from worker.core.job import Batch, Job, Media, SchedulerChoice, VideoRequest
from worker.core.lora import LoraKeys, Scaling
from worker.core.model import Detection, Kind, LoraSpec, ModelFiles, ModelSource, ModelSpec, Task
from worker.core.request import GenerationRequest, OutputOptions
from worker.core.turn import StopSignal

# What companions share. A field that is new in Job belongs here, or among the others if a call can take one for each.
SHARED = {
    "is_spare",
    *("call", "params", "scheduler", "video", "words", "mixes"),
    *("generates", "adapters", "finishing", "quality"),
}
OF_ONE_JOB = {
    *(
        "id",
        "request",
        "prompt",
        "negative_prompt",
        "seeds",
        "media",
        "output",
        "stop",
        "warnings",
        "accepted_at",
        "choice",
        "mask_reading",
    )
}


def source(name="a/m"):
    return ModelSource(scheme="hf", locator=name)


def image(colour=0, width=64):
    return Raster("RGB", width, 64, bytes([colour]) * (width * 64 * 3))


def start_from(raster):
    return (Media("image", (raster,), "image", "image"),)


WORD = LoraKeys(embeddings={"zzz": {"*": "k"}})


def batch(**changes):
    files = changes.pop("files", ModelFiles(Path("/m"), 10, revision="abc"))
    adapters = changes.pop("adapter_files", ())
    changes.setdefault("adapters", tuple(item.adapter for item in adapters))
    spec = changes.pop("spec", ModelSpec(id="m", source=source()))
    called = {"task": Task.TEXT_TO_IMAGE, "pipeline": "StableDiffusionPipeline", "lightning": False}
    called |= {name: changes.pop(name) for name in called if name in changes}
    model = Model(spec, Detection(Kind.PIPELINE, changes.pop("format", "diffusers")))
    job = Job(
        id="a",
        request=GenerationRequest(prompt="x"),
        call=ModelCall(model, **called),
        prompt="x",
        negative_prompt="y",
        params={"num_inference_steps": 5, "guidance_scale": 7.5},
        scheduler=None,
        seeds=(1,),
        media=(),
        output=OutputOptions(),
        stop=StopSignal(60),
    )
    return Batch((replace(job, **changes),), files, adapters)


def lora(weight=1.0, sha256="f" * 64, downloaded=0, keys=None):
    files = ModelFiles(Path("/l"), 5, bytes_downloaded=downloaded)
    spec, detection = LoraSpec(model="l", weight=weight), Detection(Kind.LORA, "lora")
    return LoraFiles(Adapter(spec), files, detection, sha256, keys=keys or LoraKeys(), scaling=Scaling())


def embedding(token="zzz", sha256="f" * 64):
    files, detection = ModelFiles(Path("/e"), 5), Detection(Kind.TEXTUAL_INVERSION, "safetensors")
    return AdapterFiles(Adapter(EmbeddingSpec(model="e", token=token)), files, detection, sha256)


def vae():
    return AdapterFiles(
        Adapter(VaeSpec(model="v")), ModelFiles(Path("/v"), 5), Detection(Kind.VAE, "diffusers"), "f" * 64
    )


def control(**changes):
    spec = ControlNetSpec(model="c", scale=changes.pop("scale", 1.0))
    return Control(spec, **{"image": image(), "call": ControlCall("image", "scale", None, None, None), **changes})


def test_every_field_of_a_job_is_either_shared_or_its_own():
    own = {field.name for field in dataclasses.fields(Job) if field.metadata.get("of_one_job")}
    assert own == OF_ONE_JOB
    assert {field.name for field in dataclasses.fields(Job)} - own == SHARED


def test_a_field_that_nobody_thought_of_is_shared():
    @dataclasses.dataclass(frozen=True)
    class Grown(Job):
        novelty: tuple[str, ...] = ()

    values = {field.name: getattr(batch().jobs[0], field.name) for field in dataclasses.fields(Job)}
    plain, grown = Grown(**values), Grown(**values, novelty=("x",))
    assert fingerprint(plain.shared) != fingerprint(grown.shared)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "b"},
        {"prompt": "another"},
        {"negative_prompt": "another"},
        {"seeds": (4, 5, 6)},
        {"output": OutputOptions(format="webp")},
        {"stop": StopSignal(1)},
        {"warnings": ("mind",)},
        {"request": GenerationRequest(prompt="z", seed=3)},
        {"params": {"guidance_scale": 7.5, "num_inference_steps": 5}},  # the order in which they were sent
        {"files": ModelFiles(Path("/m"), 10, revision="abc", bytes_downloaded=10)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_each_ones_own_keeps_nobody_apart(changes):
    assert batch(**changes).batch_key == batch().batch_key


@pytest.mark.parametrize(
    "changes",
    [
        {"quality": "high"},
        {"spec": ModelSpec(id="n", source=source())},
        {"spec": ModelSpec(id="m", source=source("a/other"))},
        {"format": "safetensors"},
        {"task": Task.INPAINTING},
        {"pipeline": "StableDiffusionPAGPipeline"},
        {"negative_prompt": None},
        {"params": {"num_inference_steps": 6, "guidance_scale": 7.5}},
        {"params": {"num_inference_steps": 5, "guidance_scale": 7.5, "eta": 1.0}},
        {"params": {"num_inference_steps": 5, "guidance_scale": 7.5, "width": 64}},
        {"scheduler": SchedulerChoice("euler", "EulerDiscreteScheduler")},
        {"adapters": (Adapter(VaeSpec(model="v")),)},
        {"lightning": True},
        {"video": VideoRequest(8.0)},
        {"media": start_from(image())},
        {"files": ModelFiles(Path("/m"), 10, revision="def")},
        {"files": ModelFiles(Path("/m"), 10, revision="abc", parts={"vae": Path("/v")})},
        {"adapter_files": (lora(keys=WORD),)},
        {"video": VideoRequest(8.0), "adapter_files": (lora(),)},
    ],
    ids=str,
)
def test_what_a_call_has_but_one_of_keeps_jobs_apart(changes):
    assert batch(**changes).batch_key != batch().batch_key


def test_a_profiled_job_is_alone_in_its_call():
    asked = [batch(id=name, request=GenerationRequest(prompt="x", profile=True)) for name in ("a", "b")]
    assert len({batch().batch_key, *(each.batch_key for each in asked)}) == 3
    assert not asked[0].jobs[0].shares_a_call  # nor does it wait for others


def test_what_was_derived_of_a_call_keeps_nobody_apart():
    asked = batch()
    assert asked.jobs[0].call.signature is not None
    assert size_bounds(asked.jobs[0].call.model).native == 1024
    assert asked.batch_key == batch().batch_key


def test_images_may_differ_but_not_their_sizes():
    first = batch(media=start_from(image(1))).batch_key
    assert batch(media=start_from(image(2))).batch_key == first
    assert batch(media=start_from(image(1, width=32))).batch_key != first


def test_jobs_with_other_loras_and_without_may_meet():
    """Each image of a call can have its own; but a word that a file brings would be one in every prompt."""
    assert batch(adapter_files=(lora(),)).batch_key == batch().batch_key
    assert batch(adapter_files=(lora(), embedding())).batch_key == batch(adapter_files=(embedding(),)).batch_key
    assert batch(adapter_files=(lora(), embedding())).batch_key != batch().batch_key
    videos = [
        batch(video=VideoRequest(8.0), adapter_files=files).batch_key for files in ((lora(),), (lora(weight=0.5),))
    ]
    assert videos[0] != videos[1]


def test_a_lora_is_known_by_content_and_weight():
    first = batch(adapter_files=(lora(),)).lora_key
    assert batch(adapter_files=(lora(downloaded=100, keys=LoraKeys(unknown=("k",))),)).lora_key == first
    assert batch(adapter_files=(lora(weight=0.5),)).lora_key != first
    assert batch(adapter_files=(lora(sha256="e" * 64),)).lora_key != first
    assert batch(adapter_files=(lora(), lora())).lora_key != first
    assert batch().lora_key != first


def test_joined_jobs_share_their_loras_or_have_their_own():
    first, second = (
        batch(id="a", adapter_files=(lora(), embedding())),
        batch(id="b", adapter_files=(lora(), embedding())),
    )
    shared = Batch.joined([first, second])
    assert [job.id for job in shared.jobs] == ["a", "b"]
    assert (shared.adapters, shared.own_loras) == (first.adapters, {})
    assert shared.alike() == shared
    other = batch(id="c", adapter_files=(lora(weight=0.5), embedding()))
    mixed = Batch.joined([first, second, other])
    assert [item.kind for item in mixed.adapters] == [Kind.TEXTUAL_INVERSION]
    assert {name: loras[0].adapter.spec.weight for name, loras in mixed.own_loras.items()} == {"a": 1, "b": 1, "c": 0.5}
    assert len(mixed.all_adapters) == 4
    assert mixed.alike() == shared
    assert replace(mixed, jobs=mixed.jobs[2:]).alike() == other


def test_adapters_are_shared_in_their_order():
    first = batch(adapter_files=(vae(), embedding())).batch_key
    assert batch(adapter_files=(vae(), embedding())).batch_key == first
    assert batch(adapter_files=(embedding(), vae())).batch_key != first
    assert batch(adapter_files=(vae(), embedding(token="yyy"))).batch_key != first
    assert batch(adapter_files=(vae(), embedding(sha256="e" * 64))).batch_key != first


def test_a_control_is_known_by_its_image_and_how_it_is_followed():
    first = batch(adapters=(control(),)).batch_key
    assert batch(adapters=(control(),)).batch_key == first
    for changes in ({"image": image(7)}, {"scale": 0.5}, {"mode": 2}):
        assert batch(adapters=(control(**changes),)).batch_key != first


def test_videos_of_other_lengths_are_kept_apart():
    first = batch(video=VideoRequest(8.0)).batch_key
    assert batch(video=VideoRequest(8.0)).batch_key == first
    assert batch(video=VideoRequest(8.0, frames=13)).batch_key != first
    assert batch(video=VideoRequest(16.0)).batch_key != first


def test_a_video_and_several_images_for_one_job_are_drawn_alone():
    assert batch().jobs[0].shares_a_call
    assert batch(media=start_from(image())).jobs[0].shares_a_call
    assert not batch(video=VideoRequest(8.0)).jobs[0].shares_a_call
    several = (Media("image", (image(), image()), "images", "images"),)
    assert not batch(media=several).jobs[0].shares_a_call


def test_values_are_compared_by_content_and_strangers_by_identity():
    assert fingerprint({"a": [1, (2,)], "b": {3, 4}}) == fingerprint({"b": {4, 3}, "a": (1, [2])})
    assert len({fingerprint(value) for value in (1, 1.0, True, "1", None, b"1", [1], {"1": 1})}) == 8
    assert fingerprint({"a": "b"}) != fingerprint([("a", "b")])
    stranger, other = object(), object()
    assert fingerprint([stranger]) == fingerprint([stranger]) != fingerprint([other])


def test_a_batch_stops_only_when_all_of_it_has_to():
    first, second = batch().jobs[0], batch(stop=StopSignal(60)).jobs[0]
    together = Batch((first, second), ModelFiles(Path("/m"), 1))
    first.stop.cancel()
    together.check()
    second.stop.cancel()
    with pytest.raises(type(second.stop.reason)):
        together.check()
