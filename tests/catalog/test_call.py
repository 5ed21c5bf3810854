"""A model and its calls: what is derived of them, how often, and how one asks about another class."""

import pytest

from tests.derivations import counted
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import Model, ModelCall, once
from worker.catalog.interface.parameters import parameters
from worker.catalog.interface.schema import model_schema
from worker.core.model import Detection, Kind, Lightning, ModelSource, ModelSpec, Task

T2I, I2I = Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE
CONTROLLED = "StableDiffusionControlNetPipeline"


def model(architecture: str | None = "sd1", **fields: object) -> Model:
    source = ModelSource(scheme="hf", locator="org/m")
    return Model(ModelSpec(id="org/m", source=source, architecture=architecture, **fields))  # type: ignore[arg-type]


def test_the_registry_says_more_than_the_files() -> None:
    detection = Detection(Kind.PIPELINE, "diffusers", "sd2", "StableDiffusionPipeline")
    row = Model(model("sdxl").spec, detection).architecture
    assert row is not None and row.id == "sdxl"
    row = Model(model(None).spec, detection).architecture
    assert row is not None and row.id == "sd2"
    assert model(None).architecture is None
    assert model("no such family").architecture is None


def test_a_model_is_called_for_a_task_as_the_class_that_serves_it() -> None:
    known = model()
    assert [(call.task, call.pipeline) for call in known.calls][:2] == [
        (T2I, "StableDiffusionPipeline"),
        (I2I, "StableDiffusionImg2ImgPipeline"),
    ]
    assert known.call(T2I) is known.calls[0]
    assert model(None).call(T2I).pipeline == ""


def test_its_lightning_lora_makes_another_call() -> None:
    known = model(lightning=Lightning(lora="org/l", steps=8))
    assert [call.lightning for call in known.calls] == [True] * len(known.tasks)
    assert parameters(known.call(T2I, lightning=True))["num_inference_steps"]["default"] == 8
    assert parameters(known.call(T2I))["num_inference_steps"]["default"] == 25


def test_another_class_of_a_model_is_another_call_of_it() -> None:
    plain = model().call(T2I)
    controlled = plain.as_class(CONTROLLED)
    assert (controlled.model, controlled.task, controlled.pipeline) == (plain.model, T2I, CONTROLLED)
    assert plain.as_class(plain.pipeline) is plain
    assert not plain.takes("controlnet_conditioning_scale")
    assert controlled.takes("controlnet_conditioning_scale", "prompt")
    assert {call.task for call in plain.others} == {*plain.model.tasks} - {T2I}
    assert controlled.others == ()


def test_a_model_can_be_limited_to_some_of_its_tasks() -> None:
    known = model()
    assert known.limited_to(known.tasks) is known
    assert [call.task for call in known.limited_to((I2I,)).calls] == [I2I]


def test_what_a_job_carries_is_the_catalogs_own_call() -> None:
    class Plain:
        spec, detection = model().spec, Detection(Kind.PIPELINE, "diffusers")
        task, pipeline, lightning, row = T2I, CONTROLLED, False, model().call(T2I).row

    call = model().call(T2I)
    assert ModelCall.of(call) is call
    assert ModelCall.of(Plain()).takes("controlnet_conditioning_scale")


def test_a_fact_is_derived_once_for_each_object_and_arguments() -> None:
    asked = []

    @once
    def fact(known: Model, number: int = 0) -> int:
        asked.append((known.spec.architecture, number))
        return len(asked)

    first, second = model("sd1"), model("sdxl")
    assert [fact(first), fact(first), fact(second), fact(first, 1), fact(first, number=1)] == [1, 1, 2, 3, 4]
    assert asked == [("sd1", 0), ("sdxl", 0), ("sd1", 1), ("sd1", 1)]
    assert fact.__name__ == "fact"


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.id)
@pytest.mark.quick_rows(15)
def test_a_schema_derives_each_fact_once(row, monkeypatch: pytest.MonkeyPatch) -> None:
    derivations = counted(monkeypatch)
    model_schema(Model.declared(model(row.id).spec), max_images=4, max_loras=4)
    assert derivations.named("architecture") == 1
    assert derivations.named("parameters") >= len(row.pipelines)
    assert not derivations.repeated()
