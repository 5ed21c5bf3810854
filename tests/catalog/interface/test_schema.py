"""Parameters: every value is taken, or refused with a typed error that names the field. Never anything else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import JsonValue

from tests.counting import Count, bytes_read
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import UNDETECTED, Model, declared
from worker.catalog.classes import signatures
from worker.catalog.interface.adapters import all_adapter_fields
from worker.catalog.interface.checking import check_defaults, check_parameters, unsupported
from worker.catalog.interface.parameters import defaults, parameters, takes_negative_prompt
from worker.catalog.interface.request_fields import common_fields
from worker.catalog.interface.sampling import fit_of
from worker.catalog.interface.schema import model_schema
from worker.catalog.interface.sizes import image_limit, size_bounds
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.model import Detection, Kind, Lightning, ModelSource, ModelSpec, Task

T2I, I2I = Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE
NAN, INF = float("nan"), float("inf")


def model(architecture: str = "sd1", **fields: object) -> ModelSpec:
    return ModelSpec(id="org/m", source=ModelSource(scheme="hf", locator="org/m"), architecture=architecture, **fields)


def check(raw: dict[str, JsonValue], spec: ModelSpec | None = None, task: Task = T2I, **options: object):
    spec = spec or model()
    detection = options.pop("detection", None) or declared(spec) or UNDETECTED
    call = Model(spec, detection).call(task, lightning=bool(options.pop("lightning", False)))
    return check_parameters(raw, call, max_images=8, **options)


def tiny(native: int = 64) -> Detection:
    return Detection(Kind.PIPELINE, "diffusers", "sd1", "StableDiffusionPipeline", (T2I, I2I), native_size=native)


def test_a_request_that_says_nothing_gets_the_defaults() -> None:
    assert check({}) == {"num_inference_steps": 25, "guidance_scale": 7.5, "width": 512, "height": 512}


def test_defaults_stack_family_model_lightning_request() -> None:
    fast = Lightning(lora="org/l", steps=8, defaults={"guidance_scale": 1.0})
    spec = model(defaults={"num_inference_steps": 40, "guidance_scale": 3.0, "eta": 0.5}, lightning=fast)
    own = check({}, spec)
    assert (own["num_inference_steps"], own["guidance_scale"], own["eta"], own["width"]) == (40, 3.0, 0.5, 512)
    lit = check({}, spec, lightning=True)
    assert (lit["num_inference_steps"], lit["guidance_scale"], lit["eta"]) == (8, 1.0, 0.5)
    assert check({"num_inference_steps": 12}, spec, lightning=True)["num_inference_steps"] == 12
    assert defaults(Model.declared(spec).call(T2I, lightning=True)) == lit


def test_whole_floats_are_integers_also_in_lists() -> None:
    taken = check({"num_inference_steps": 20.0, "width": 512.0, "timesteps": [999.0, 500], "guidance_scale": 7})
    assert json.dumps([taken["num_inference_steps"], taken["width"], taken["timesteps"]]) == "[20, 512, [999, 500]]"
    assert taken["guidance_scale"] == 7


def test_an_image_brings_its_own_size() -> None:
    assert not check({}, task=I2I).keys() & {"width", "height"}
    assert check({"width": 256}, task=I2I)["width"] == 256
    assert check({"strength": 0.5}, task=I2I)["strength"] == 0.5


def test_defaults_the_pipeline_does_not_take_are_left_out() -> None:
    spec = model(defaults={"strength": 0.4})
    assert "strength" not in check({}, spec)
    assert check({}, spec, I2I)["strength"] == 0.4


def test_guidance_goes_by_the_family_s_name() -> None:
    spec = model("qwen-image", defaults={"guidance_scale": 7.0})
    assert check({}, spec)["true_cfg_scale"] == 7.0
    taken = check({"guidance_scale": 3}, spec)
    assert taken["true_cfg_scale"] == 3
    assert "guidance_scale" not in taken
    with pytest.raises(ParameterOutOfRange, match="send one of the two") as caught:
        check({"guidance_scale": 3, "true_cfg_scale": 4}, spec)
    assert caught.value.field == "guidance_scale"


def test_a_tiny_model_draws_tiny_images() -> None:
    assert check({}, detection=tiny())["width"] == 64
    assert check({"width": 32, "height": 40}, detection=tiny())["width"] == 32
    small_video = Detection(Kind.PIPELINE, "diffusers", "wan", native_size=64)
    assert check({}, model("wan"), Task.TEXT_TO_VIDEO, detection=small_video)["width"] == 64
    assert check({}, model("wan"), Task.TEXT_TO_VIDEO)["height"] == 480
    with pytest.raises(ParameterOutOfRange, match="a multiple of 8 between 32 and"):
        check({"width": 24}, detection=tiny())
    with pytest.raises(ParameterOutOfRange, match="a multiple of 8 between 64 and"):
        check({"width": 32})


def test_limits_move_the_bounds_and_the_defaults_follow() -> None:
    spec = model(limits={"max_side": 256, "max_steps": 10, "max_images": 2})
    assert check({}, spec) == {"num_inference_steps": 10, "guidance_scale": 7.5, "width": 256, "height": 256}
    with pytest.raises(ParameterOutOfRange, match="between 64 and 256; 512 was sent"):
        check({"width": 512}, spec)
    with pytest.raises(ParameterOutOfRange, match="between 1 and 10; 11 was sent"):
        check({"num_inference_steps": 11}, spec)
    with pytest.raises(ParameterOutOfRange, match="between 1 and 2; 3 was sent"):
        check({"num_images": 3}, spec)
    assert image_limit(spec, 8) == 2
    wide = model(limits={"max_steps": 500})
    assert check({"num_inference_steps": 500}, wide)["num_inference_steps"] == 500


def test_pixels_are_bounded_together() -> None:
    spec = model(limits={"max_pixels": 512 * 512})
    assert check({"width": 1024, "height": 256}, spec)["width"] == 1024
    with pytest.raises(ParameterOutOfRange) as caught:
        check({"width": 1024}, spec)
    assert caught.value.message == (
        "width x height must be at most 262,144 pixels; 1024 x 512 is 524,288: lower width or height."
    )


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.id)
def test_every_family_s_own_defaults_are_within_its_bounds(row) -> None:
    spec = model(row.id)
    for task in row.pipelines:
        effective = check({}, spec, task)
        assert check(effective, spec, task) == effective
        bounds = size_bounds(Model.declared(spec))
        assert bounds.minimum % bounds.multiple == bounds.maximum % bounds.multiple == 0
        assert bounds.minimum <= bounds.native <= bounds.maximum


def test_the_pipeline_s_own_ceilings_are_known() -> None:
    assert check({"max_sequence_length": 512}, model("flux1"))["max_sequence_length"] == 512
    with pytest.raises(ParameterOutOfRange, match="max_sequence_length must be an integer between 1 and 512"):
        check({"max_sequence_length": 513}, model("flux1"))


BAD_TEXT = "text with a NUL, a lone surrogate or more than 8,000 characters"
SENTENCES = [
    ({"width": 513}, "width must be a multiple of 8 between 64 and 2896; 513 was sent (nearest: 512)."),
    ({"height": 9000}, "height must be a multiple of 8 between 64 and 2896; 9000 was sent (nearest: 2896)."),
    ({"num_inference_steps": 20.5}, "num_inference_steps must be an integer between 1 and 150; 20.5 was sent."),
    ({"num_inference_steps": True}, "num_inference_steps must be an integer between 1 and 150; true was sent."),
    ({"num_inference_steps": "20x"}, 'num_inference_steps must be an integer between 1 and 150; "20x" was sent.'),
    ({"guidance_scale": None}, "guidance_scale must be a number between 0 and 30; null was sent."),
    ({"guidance_scale": NAN}, "guidance_scale must be a number between 0 and 30; NaN or infinity was sent."),
    (
        {"guidance_scale": 10**400},
        "guidance_scale must be a number between 0 and 30; a number beyond 64 bits was sent.",
    ),
    ({"clip_skip": -1}, "clip_skip must be an integer between 0 and 11; -1 was sent."),
    (
        {"sigmas": [1, INF]},
        "sigmas must be a list of 1 to 150 items, each a number between 0 and 1000; NaN or infinity was sent.",
    ),
    ({"num_images": 9}, "num_images must be an integer between 1 and 8; 9 was sent."),
    ({"scheduler": "dd\x00im"}, f"scheduler must be text of at most 64 characters; {BAD_TEXT} was sent."),
    ({"scheduler": ["ddim"]}, 'scheduler must be text of at most 64 characters; ["ddim"] was sent.'),
]


@pytest.mark.parametrize(("raw", "sentence"), SENTENCES, ids=lambda value: str(value)[:24])
def test_out_of_range_in_one_sentence(raw: dict[str, JsonValue], sentence: str) -> None:
    with pytest.raises(ParameterOutOfRange) as caught:
        check(raw)
    assert caught.value.message == sentence
    assert caught.value.field == next(iter(raw))


UNKNOWN = [
    ({"widht": 512}, T2I, "did you mean width?"),
    ({"promt": "x"}, T2I, "did you mean prompt?"),
    ({"cfg": 3}, T2I, "did you mean cfg_scale?"),
    ({"strength": 0.5}, T2I, "only of image-to-image"),
    ({"guidance_rescale": 0.5}, I2I, "only of text-to-image; leave guidance_rescale out, or send no image."),
    ({"true_cfg_scale": 4}, T2I, "send guidance_scale instead"),
    ({"num_frames": 16}, T2I, "is a parameter of other model families"),
    ({"generator": 1}, T2I, "send seed instead"),
    ({"prompt_embeds": [[0.1]]}, T2I, "send prompt instead"),
    ({"cross_attention_kwargs": {"scale": 1}}, T2I, "is set by the worker"),
    ({"callback_on_step_end": "os.system"}, T2I, "is set by the worker"),
    ({"custom_pipeline": "x"}, T2I, "it takes width, height"),
    ({"trust_remote_code": True}, T2I, "it takes width, height"),
    ({"\ud800\x00": 1}, T2I, "is not a parameter"),
    ({"": 1}, T2I, "an empty name is not a parameter"),
    ({"x" * 80_000: 1}, T2I, "is not a parameter"),
]


@pytest.mark.parametrize(("raw", "task", "part"), UNKNOWN, ids=lambda value: ascii(value)[:24])
def test_unknown_names_say_what_to_do(raw: dict[str, JsonValue], task: Task, part: str) -> None:
    with pytest.raises(UnknownParameter) as caught:
        check(raw, task=task, aliases={"cfg_scale": "guidance_scale"})
    error = caught.value
    assert part in error.message
    assert "org/m" in error.message
    assert error.field is not None
    error.message.encode("utf-8")
    assert len(error.message) < 500


def test_a_field_of_the_request_that_the_family_cannot_use() -> None:
    spec = model("glm-image")
    assert not takes_negative_prompt(Model(spec).call(T2I))
    assert takes_negative_prompt(Model(model()).call(T2I))
    error = unsupported("negative_prompt", Model.declared(spec).call(T2I))
    assert error.message == (
        "negative_prompt is a parameter of other model families, not of org/m (GLM-Image); leave it out."
    )


def test_strength_must_leave_a_step() -> None:
    with pytest.raises(ParameterOutOfRange, match="leaves no step") as caught:
        check({"strength": 0.01, "num_inference_steps": 20}, task=I2I)
    assert caught.value.field == "strength"


def test_a_check_derives_nothing_again() -> None:
    spec, raw = model("sdxl"), {"width": 1024, "guidance_scale": 5.5, "widht": 3}
    for _ in range(2):  # the first one reads the signature
        before = bytes_read()
        with Count() as count, pytest.raises(UnknownParameter):
            check(dict(raw), spec)
    assert bytes_read() - before < 10_000
    assert count.calls < 15_000


def test_deep_and_long_values_are_refused_quickly() -> None:
    deep: JsonValue = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, [0.5] * 100_000, {"a": {"b": 1}}):
        with pytest.raises(ParameterOutOfRange, match="sigmas must be"):
            check({"sigmas": value})
    with pytest.raises(ParameterOutOfRange, match="scheduler must be") as caught:
        check({"scheduler": "x" * 1_000_000})
    assert len(caught.value.message) < 300
    while isinstance(deep, list):  # or the interpreter recurses to free it
        deep = deep[0]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from([NAN, INF, -INF, 10**400, -(2**63), 1e308, 5e-324, "\x00", "\ud800", "", "512", True, 0, -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted(parameters(Model(model("sdxl")).call(I2I)) | parameters(Model(model()).call(T2I)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    raw=st.dictionaries(
        st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=()), max_size=12), json_values
    ),
    row=st.sampled_from(["sd1", "sdxl", "flux1", "qwen-image-edit", "cogvideox", "svd"]),
    data=st.data(),
)
def test_whatever_is_sent_is_taken_or_refused_with_its_name(raw, row, data) -> None:
    spec = model(row)
    task = data.draw(st.sampled_from(Model(spec).tasks))
    try:
        effective = check(raw, spec, task)
    except InvalidRequest as error:
        assert error.field
        assert any(error.field in (name, json.dumps(name[:64])[1:-1]) for name in raw) or error.field in (
            "width",
            "strength",
            "an empty name",
        )
        assert error.message.endswith((".", "?"))
        error.message.encode("utf-8")
    else:
        json.dumps(effective, allow_nan=False).encode("utf-8")
        properties = parameters(Model.declared(spec).call(task))
        assert effective.keys() <= properties.keys()
        Draft202012Validator({"properties": properties}).validate(effective)


@pytest.mark.parametrize("row", ARCHITECTURES, ids=lambda row: row.id)
@pytest.mark.quick_rows(15)
def test_the_schema_is_valid_and_so_are_its_example_and_defaults(row) -> None:
    spec = model(row.id, description="A model.")
    schema = model_schema(Model.declared(spec), max_images=4, max_loras=3)
    Draft202012Validator.check_schema(schema)
    json.dumps(schema, allow_nan=False)
    validator = Draft202012Validator(schema)
    for example in schema["examples"]:
        validator.validate(example)
    for name, field in schema["properties"].items():
        if "default" in field and field["default"] is not None:
            Draft202012Validator({**field, "$defs": schema["$defs"]}).validate(field["default"])
        assert name != "params"
    assert schema["properties"]["num_images"]["maximum"] == 4
    assert schema["properties"]["loras"]["anyOf"][0]["maxItems"] == 3
    offered = fit_of(Model.declared(spec).calls[0])
    assert set(schema["properties"]["scheduler"]["examples"]) <= set(offered.names)
    assert ("shift" in schema["properties"]) is bool(offered.shifting)
    assert schema["properties"]["task"]["enum"] == [*row.pipelines, None]
    assert not validator.is_valid(schema["examples"][0] | {"wdith": 512})


def test_the_schema_and_the_check_agree() -> None:
    spec = model()
    validator = Draft202012Validator(model_schema(Model.declared(spec), max_images=8, max_loras=8))
    for raw, _ in SENTENCES:
        # Beyond what a schema can say, and null, which doors leave out.
        if not any(part in json.dumps(raw) for part in ("Infinity", "NaN", "u0000", "null")):
            assert not validator.is_valid({"prompt": "x", **raw}), raw
    assert not validator.is_valid({"prompt": "x", "action": "schema"})
    for raw in (
        {"width": 64},
        {"action": "generate"},
        {"sigmas": [1.0], "scheduler": "euler"},
        {"clip_skip": None},
        {"loras": ["org/l", {"model": "org/l"}]},
        {"loras": "org/l", "guidance_scale": None, "seed": 7.0},
    ):
        validator.validate({"prompt": "x", **raw})


def test_every_common_field_is_there_with_its_bounds() -> None:
    properties = model_schema(Model(model()), max_images=1, max_loras=1)["properties"]
    elsewhere = {
        "images",
        "control_image",
        "control_images",
        "video",
        "lightning",
        *all_adapter_fields(),
    }  # of models that take them
    assert set(common_fields()) - elsewhere <= properties.keys()
    assert properties["seed"]["maximum"] == 2**63 - 1
    assert properties["prompt"]["description"]


def test_which_class_serves_a_task() -> None:
    assert Model(model()).pipeline_for(I2I) == "StableDiffusionImg2ImgPipeline"
    assert Model(model("", pipeline="NewPipeline")).pipeline_for(T2I) == "NewPipeline"
    assert Model(model(pipeline="NewPipeline")).pipeline_for(I2I) == "NewPipeline"
    assert Model(model(pipeline="StableDiffusionPipeline")).pipeline_for(I2I) == "StableDiffusionImg2ImgPipeline"
    assert Model(model(None), tiny()).pipeline_for(I2I) == "StableDiffusionImg2ImgPipeline"
    assert Model(model(None)).pipeline_for(T2I) is None
    assert declared(model(None)) is None


def test_without_diffusers_the_table_still_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "_index", dict)
    signatures.call_parameters.cache_clear()
    assert check({"clip_skip": 1, "width": 256})["width"] == 256
    assert check({"true_cfg_scale": 2.5}, model("qwen-image"))["true_cfg_scale"] == 2.5
    with pytest.raises(ParameterOutOfRange, match="guidance_scale must be a number between 0 and 30"):
        check({"guidance_scale": "high"})
    with pytest.raises(UnknownParameter, match="did you mean num_inference_steps"):
        check_defaults(model(defaults={"num_inference_step": 3}))
    check_defaults(model(defaults={"some_new_parameter": 3}))  # nothing here can know it
    schema = model_schema(Model(model()), max_images=1, max_loras=1)
    Draft202012Validator(schema).validate(schema["examples"][0])
    assert {"image", "mask_image"} <= schema["properties"].keys()
    signatures.call_parameters.cache_clear()


def test_a_model_of_no_family_is_checked_by_its_class() -> None:
    spec = model(None, pipeline="StableDiffusionLatentUpscalePipeline")
    assert check({"num_inference_steps": 5}, spec, Task.UPSCALING)["num_inference_steps"] == 5
    with pytest.raises(UnknownParameter):
        check({"clip_skip": 1}, spec, Task.UPSCALING)
    with pytest.raises(UnknownParameter, match="only of image-to-image"):  # whatever the task says
        check({"strength": 0.5}, model(None, pipeline="StableDiffusionImg2ImgPipeline"))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"defaults": {"num_inference_steps": 0}}, ParameterOutOfRange),
        ({"defaults": {"guidance_scale": INF}}, ParameterOutOfRange),
        ({"defaults": {"negative_prompt": 5}}, ParameterOutOfRange),
        ({"defaults": {"num_images": 2}}, UnknownParameter),
        ({"defaults": {"width": 1024, "height": 1024}, "limits": {"max_pixels": 512 * 512}}, ParameterOutOfRange),
        ({"defaults": {"strength": 0.01}}, ParameterOutOfRange),
        ({"defaults": {"generator": 2}}, UnknownParameter),
        ({"lightning": Lightning(lora="o/l", steps=4, defaults={"true_cfg_scale": 1.0})}, UnknownParameter),
    ],
)
def test_a_registry_s_bad_defaults_are_refused(fields: dict[str, object], error: type[InvalidRequest]) -> None:
    with pytest.raises(error):
        check_defaults(model(**fields))
    check_defaults(model(defaults={"negative_prompt": "blurry", "strength": 0.5, "width": 768}))
