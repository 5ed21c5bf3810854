"""Which fields go together: the schema of a model says for each task what is needed and what is not taken."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from worker.catalog.call import Model
from worker.catalog.interface.checking import check_parameters
from worker.catalog.interface.clauses import DEFINITIONS, Clause, both, clauses_of, condition, rule
from worker.catalog.interface.schema import model_schema
from worker.core.errors import UnknownParameter
from worker.core.model import ModelSource, ModelSpec, Task

FIELDS = ("image", "mask_image", "control_image", "video")
SETS = [frozenset(chosen) for size in range(5) for chosen in itertools.combinations(FIELDS, size)]
URL, MASK = "https://example.com/a.png", "https://example.com/mask.png"


def model(architecture: str | None = "sd1", **fields: object) -> ModelSpec:
    return ModelSpec(id="org/m", source=ModelSource(scheme="hf", locator="org/m"), architecture=architecture, **fields)


def validator(architecture: str | None, **fields: object) -> Draft202012Validator:
    spec = model(architecture, **fields)
    schema = model_schema(Model.declared(spec), max_images=8, max_loras=8)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sets(st.sampled_from(SETS), min_size=1))
def test_clauses_say_exactly_which_sets_of_fields_are_taken(taken: set[frozenset[str]]):
    found = clauses_of(FIELDS, lambda chosen: chosen in taken)
    rules = [rule(clause, next(iter(clause.unsent), None) if not clause.sent else None, _itself) for clause in found]
    for schema in (both(*rules), condition(found)):
        check = Draft202012Validator({**schema, "$defs": dict(DEFINITIONS)})
        for chosen in SETS:
            request = {name: URL if name in chosen else None for name in FIELDS}
            assert check.is_valid(request) is (chosen in taken), (found, chosen)


def _itself(name: str) -> tuple[str, ...]:
    return (name,)


def test_clauses_are_few_and_short():
    assert clauses_of(FIELDS, lambda chosen: {"image", "mask_image"} <= chosen and "video" not in chosen) == (
        Clause(("image",), ()),
        Clause(("mask_image",), ()),
        Clause((), ("video",)),
    )
    assert clauses_of(FIELDS, lambda chosen: "image" in chosen or "mask_image" not in chosen) == (
        Clause(("image",), ("mask_image",)),
    )
    assert clauses_of(FIELDS, lambda chosen: True) == ()


REFUSED = [
    ("sd1", {"mask_image": MASK}),
    ("sd1", {"image": URL, "padding_mask_crop": 8}),
    ("sd1", {"padding_mask_crop": 8}),
    ("sd1", {"strength": 0.5}),
    ("sd1", {"image": [URL, URL]}),
    ("sd1", {"image": URL, "images": [URL]}),
    ("sd1", {"image": URL, "task": "text-to-image"}),
    ("sd1", {"task": "inpainting", "image": URL}),
    ("sd1", {"outpaint": {"left": 8}}),
    ("sd1", {"image": URL, "outpaint": {"left": 0}}),
    ("sd1", {"image": URL, "mask_image": MASK, "outpaint": {"left": 8}}),
    ("sd1", {"timesteps": [900, 500]}),
    ("sd1", {"sigmas": [1.0, 0.5]}),
    ("sd1", {"scheduler": "DDIMScheduler", "sigmas": [1.0], "timesteps": [900]}),
    ("sd1", {"scheduler": "DDIMScheduler", "schedule": "karras", "timesteps": [900]}),
    ("sd1", {"loras": [""]}),
    ("sd1", {"loras": ""}),
    ("sd1", {"loras": [{"model": ""}]}),
    ("sd1", {"vae": ""}),
    ("sd1", {"guess_mode": True}),
    ("sd1", {"controlnets": ["org/c"]}),
    ("sd1", {"ip_adapters": [{"model": "org/a"}]}),
    ("sd3", {"ip_adapters": [{"model": "org/a", "image": URL}] * 2}),
    ("sdxl", {"refiner": "org/r", "denoising_end": 0.8}),
    ("sdxl", {"image": URL, "mask_image": MASK, "refiner": "org/r"}),
    ("qwen-image", {"guidance_scale": 3, "true_cfg_scale": 3}),
    ("flux1-kontext", {"image": URL, "strength": 0.5}),
    ("flux1-kontext", {"image": URL, "_auto_resize": False}),
    ("wan", {"output": {"format": "gif"}, "image": URL}),
    ("wan", {"schedule": "karras"}),
    ("qwen-image-edit", {}),
]
TAKEN = [
    ("sd1", {"image": [URL]}),
    ("sd1", {"images": [URL]}),
    ("sd1", {"images": URL, "strength": 0.5}),
    ("sd1", {"image": URL, "mask_image": MASK, "padding_mask_crop": 8}),
    ("sd1", {"image": URL, "outpaint": {"left": 8}}),
    ("sd1", {"image": None, "strength": None, "images": [], "task": None, "loras": []}),
    ("sd1", {"scheduler": "DDIMScheduler", "timesteps": [900, 500], "schedule": "automatic"}),
    ("sd1", {"controlnets": {"model": "org/c", "image": URL}, "guess_mode": True}),
    ("sd1", {"image": URL, "controlnets": ["org/c"]}),
    ("sd1", {"ip_adapters": {"model": "org/a", "images": [URL]}, "seed": 7.0}),
    ("sdxl", {"refiner": "org/r"}),
    ("sdxl", {"denoising_end": 0.8}),
    ("flux1-kontext", {"image": URL, "mask_image": MASK, "strength": 0.5}),
    ("qwen-image-edit", {"images": [URL]}),
    ("wan", {"schedule": "karras", "scheduler": "euler"}),
    ("wan", {"schedule": "automatic"}),
]


@pytest.mark.quick_rows(8)
@pytest.mark.parametrize(("architecture", "fields"), REFUSED, ids=str)
def test_what_the_worker_refuses_does_not_fit_the_schema(architecture: str, fields: dict[str, object]):
    assert not validator(architecture).is_valid({"prompt": "a cat", **fields})


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize(("architecture", "fields"), TAKEN, ids=str)
def test_what_the_worker_takes_fits_the_schema(architecture: str, fields: dict[str, object]):
    validator(architecture).validate({"prompt": "a cat", **fields})


def test_a_model_of_one_task_says_what_it_needs_without_conditions():
    schema = validator("sd1", tasks=(Task.INPAINTING,)).schema
    assert schema["required"] == ["prompt"]
    assert not any("$comment" in one for one in schema["allOf"])


def test_each_task_has_its_example_and_its_own_default():
    schema = validator("sd1").schema
    assert [sorted({"image", "mask_image"} & example.keys()) for example in schema["examples"]] == [
        [],
        ["image"],
        ["image", "mask_image"],
    ]
    inpainting = next(one for one in schema["allOf"] if one.get("$comment") == "inpainting")
    assert inpainting["then"]["properties"]["strength"] == {"default": 1.0}
    assert schema["properties"]["strength"]["default"] == 0.8


def test_what_a_pipeline_calls_private_is_refused_by_name():
    spec = model("flux1-kontext")
    assert "_auto_resize" not in validator("flux1-kontext").schema["properties"]
    with pytest.raises(UnknownParameter, match="_auto_resize is set by the worker") as refused:
        check_parameters({"_auto_resize": False}, Model.declared(spec).call(Task.IMAGE_EDITING), max_images=1)
    assert refused.value.field == "_auto_resize"


def test_what_is_required_depends_on_the_tasks() -> None:
    both, edit = model(), model("qwen-image-edit", tasks=(Task.IMAGE_EDITING,))
    first, second = (model_schema(Model(spec), max_images=1, max_loras=1) for spec in (both, edit))
    assert first["required"] == second["required"] == ["prompt"]
    assert not Draft202012Validator(second).is_valid({"prompt": "x"})
    for name in ("image", "images"):
        Draft202012Validator(second).validate({"prompt": "x", name: ["https://example.com/a.png"]})
    assert "strength" not in second["properties"]
    only_text = model_schema(Model(model(tasks=(Task.TEXT_TO_IMAGE,))), max_images=1, max_loras=1)
    assert "image" not in only_text["properties"]
    assert "strength" not in only_text["properties"]
    assert "negative_prompt" not in model_schema(Model(model("glm-image")), max_images=1, max_loras=1)["properties"]
