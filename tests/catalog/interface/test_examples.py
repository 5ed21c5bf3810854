"""The examples in a schema: each is a request, or a field of one, that the model takes as it is."""

import pytest
from jsonschema import Draft202012Validator

from tests.catalog.interface.test_schema import I2I, T2I, check, model
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import Model
from worker.catalog.interface import sampling
from worker.catalog.interface.parameters import parameters
from worker.catalog.interface.sampling import fit_of
from worker.catalog.interface.schema import model_schema


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.id)
@pytest.mark.quick_rows(15)
def test_an_example_of_a_field_needs_nothing_beside_it(row) -> None:
    spec = model(row.id)
    schema = model_schema(Model.declared(spec), max_images=4, max_loras=3)
    validator = Draft202012Validator(schema)
    examples = [(name, value) for name, item in schema["properties"].items() for value in item.get("examples", ())]
    assert "scheduler" in dict(examples)
    for call, request in zip(Model.declared(spec).calls, schema["examples"], strict=True):
        own, fit = parameters(call), fit_of(call)
        for name, value in [example for example in examples if example[0] in own]:
            effective = check({name: value}, spec, call.task)
            assert sampling.choose(effective, effective, fit, "") is not None
            validator.validate(request | {name: value})


def test_a_schedule_is_an_example_where_the_models_usual_scheduler_draws_it() -> None:
    plms, solver = model("sd1"), model("sd1", defaults={"scheduler": "dpmpp_2m"})
    named, usual = (model_schema(Model.declared(spec), max_images=1, max_loras=1) for spec in (plms, solver))
    assert "examples" not in named["properties"]["schedule"]  # PLMS has no schedule but its own
    assert "karras" in named["properties"]["schedule"]["description"]
    assert "karras" in usual["properties"]["schedule"]["examples"]
    request = {"prompt": "a cat", "schedule": "karras"}
    assert not Draft202012Validator(named).is_valid(request)
    assert Draft202012Validator(named).is_valid(request | {"scheduler": "euler"})
    assert Draft202012Validator(named).is_valid(request | {"schedule": "automatic"})
    assert Draft202012Validator(usual).is_valid(request)


def test_an_example_says_nothing_by_two_names() -> None:
    spec = model("qwen-image", pipeline="QwenImageControlNetInpaintPipeline")  # which has both, each with its default
    schema = model_schema(Model(spec), max_images=1, max_loras=1)
    assert {"guidance_scale", "true_cfg_scale"} <= schema["properties"].keys()
    assert {"guidance_scale", "true_cfg_scale"} & schema["examples"][0].keys() == {"true_cfg_scale"}
    Draft202012Validator(schema).validate(schema["examples"][0])


def test_an_example_is_one_for_every_task() -> None:
    examples = model_schema(Model(model("sd3")), max_images=1, max_loras=1)["properties"]["scheduler"]["examples"]
    offered = {task: fit_of(Model(model("sd3")).call(task)).names for task in (T2I, I2I)}
    assert "euler_ancestral" in offered[T2I] and "euler_ancestral" not in offered[I2I]
    assert "euler" in examples and "euler_ancestral" not in examples
