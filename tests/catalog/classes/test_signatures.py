"""Call signatures, read from text: they must agree with what Python itself says, without importing anything."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tests.counting import bytes_read, calls_of
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.classes import signatures
from worker.catalog.classes.signatures import (
    DENIED,
    Schema,
    call_parameters,
    json_schema,
    known_pipelines,
    needed_parts,
    regenerates_by_strength,
)
from worker.catalog.interface.bounds import bounded

ROOT = Path(__file__).parents[3]
CLASSES = sorted({name for row in ARCHITECTURES for name in row.pipelines.values()})
SET_BY_THE_WORKER = """
generator latents image images mask_image prompt negative_prompt prompt_embeds negative_prompt_embeds
pooled_prompt_embeds callback_on_step_end callback_on_step_end_tensor_inputs output_type return_dict
cross_attention_kwargs joint_attention_kwargs attention_kwargs ip_adapter_image ip_adapter_image_embeds
num_images_per_prompt num_videos_per_prompt control_image video mask_video kwargs prior_latents fonts
"""
SET_BY_CALLERS = """
width height num_inference_steps guidance_scale true_cfg_scale strength eta clip_skip guidance_rescale sigmas
timesteps num_frames max_sequence_length image_guidance_scale prior_num_inference_steps original_size denoising_end
"""


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_the_table_is_read(name: str) -> None:
    parameters = call_parameters(name)
    assert parameters is not None, f"{name} is not in the installed diffusers"
    # Without steps or a size nothing a caller knows would be left.
    assert parameters.keys() & {"num_inference_steps", "decoder_num_inference_steps", "prior_num_inference_steps"}


@pytest.mark.slow  # imports torch
def test_the_text_says_what_python_says() -> None:
    import diffusers

    for name in ("StableDiffusionPipeline", "FluxPipeline", "KandinskyV22CombinedPipeline"):
        signature = inspect.signature(getattr(diffusers, name).__call__)
        expected = [
            part for part in signature.parameters.values() if part.name != "self" and part.kind != part.VAR_KEYWORD
        ]
        found = call_parameters(name)
        assert found is not None
        assert list(found) == [part.name for part in expected]
        for part in expected:
            assert found[part.name].required == (part.default is part.empty)
            if isinstance(part.default, int | float | str):
                assert found[part.name].default == part.default


def test_types_defaults_and_the_pipelines_own_limits() -> None:
    flux = call_parameters("FluxPipeline")
    assert flux is not None
    assert flux["guidance_scale"].schema == {"type": "number"}
    assert flux["num_inference_steps"].default == 28
    assert flux["sigmas"].schema == {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]}
    assert flux["generator"].schema == {"type": "null"}
    assert flux["joint_attention_kwargs"].schema == {"type": "null"}
    assert flux["max_sequence_length"].schema == {"type": "integer", "maximum": 512}
    assert flux["callback_on_step_end_tensor_inputs"].default == ["latents"]


def annotated(text: str) -> Schema | None:
    return json_schema(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("int", {"type": "integer"}),
        ("'int'", {"type": "integer"}),
        ("Optional[float]", {"anyOf": [{"type": "number"}, {"type": "null"}]}),
        ("None | bool", {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
        ("Union[str, List[str]]", {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        (
            "torch.Tensor | list[int] | int",
            {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "integer"}]},
        ),
        ("tuple[int, int]", {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
        ("tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        ("typing.List[float]", {"type": "array", "items": {"type": "number"}}),
        ("Literal['first', 'last']", {"type": "string", "enum": ["first", "last"]}),
        ("torch.Tensor", None),
        ("list[torch.Tensor]", None),
        ("tuple[int, str]", None),
        ("dict[str, Any]", None),
        ("Callable[[int], None]", None),
        ("torch.Tensor | None", {"type": "null"}),
        ("PIL.Image.Image", None),
        ("Literal[1, 2]", None),
        ("3", None),
        ("'not python ['", None),
    ],
)
def test_annotations_become_json_types(text: str, schema: Schema | None) -> None:
    assert annotated(text) == schema


def fake_diffusers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines = folder / "pipelines"
    (pipelines / "deprecated").mkdir(parents=True)
    (pipelines / "z.py").write_text(
        "raise SystemExit('imported')\n"
        "class Parent:\n    def __call__(self, prompt: str, steps_: int = 3, *, size: float = 1.5, **kwargs): ...\n"
        "class Child(\n    Mixin,\n    module.Parent,\n):\n    pass\n"
        "class Loop(Loop): pass\nclass Twice:\n    def __call__(self, new: int): ...\n"
    )
    (pipelines / "deprecated" / "b.py").write_text("class Twice:\n    def __call__(self, old: int): ...\n")
    (pipelines / "broken.py").write_text("class Broken:\n  def (\n")
    monkeypatch.setattr(signatures, "_pipelines_folder", lambda: pipelines)


@pytest.fixture
def clean_caches():
    def clear() -> None:
        signatures._index.cache_clear()
        call_parameters.cache_clear()

    clear()
    yield
    clear()


def test_inheritance_is_followed_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_caches: None
) -> None:
    fake_diffusers(tmp_path, monkeypatch)
    child = call_parameters("Child")
    assert child is not None
    assert list(child) == ["prompt", "steps_", "size"]
    assert child["prompt"].required
    assert (child["size"].default, child["size"].required) == (1.5, False)
    assert call_parameters("Loop") is None
    assert call_parameters("Broken") is None
    assert call_parameters("Nowhere") is None
    twice = call_parameters("Twice")
    assert twice is not None
    assert list(twice) == ["new"]


def test_without_diffusers_the_answer_is_none(monkeypatch: pytest.MonkeyPatch, clean_caches: None) -> None:
    monkeypatch.setattr(signatures.importlib.util, "find_spec", lambda name: None)
    assert call_parameters("FluxPipeline") is None
    assert known_pipelines() == frozenset()


def test_a_signature_is_read_once(clean_caches: None) -> None:
    call_parameters("StableDiffusionPipeline")  # looks for all classes
    before = bytes_read()
    call_parameters("FluxPipeline")
    assert bytes_read() - before < 200_000, "its own file"
    assert calls_of(lambda: call_parameters("FluxPipeline")) < 10


def test_nothing_that_a_pipeline_would_read_as_a_path_or_run_is_offered() -> None:
    """Free texts of every pipeline of the table: what is left must be words, not places."""
    texts = set()
    for name in CLASSES:
        for parameter in (call_parameters(name) or {}).values():
            free = parameter.schema and "string" in str(parameter.schema) and "enum" not in str(parameter.schema)
            if free and not DENIED.fullmatch(parameter.name):
                texts.add(parameter.name)
    assert texts, "the denial would refuse everything"
    places = ("path", "file", "url", "image", "video", "font")
    suspicious = [name for name in texts if any(part in name for part in places)]
    assert not suspicious


@pytest.mark.parametrize("name", SET_BY_THE_WORKER.split())
def test_what_the_worker_sets_is_denied(name: str) -> None:
    assert DENIED.fullmatch(name)


@pytest.mark.parametrize("name", SET_BY_CALLERS.split())
def test_what_a_caller_may_set_is_not_denied(name: str) -> None:
    assert not DENIED.fullmatch(name)


def test_every_number_and_list_of_every_pipeline_is_bounded() -> None:
    def walk(schema: Schema, name: str) -> None:
        for member in schema.get("anyOf", []):
            walk(member, name)
        if schema.get("type") in ("integer", "number"):
            assert {"minimum", "maximum"} <= schema.keys(), name
        if schema.get("type") == "array":
            assert "maxItems" in schema, name
            walk(schema["items"], name)
        if schema.get("type") == "string":
            assert {"maxLength", "enum"} & schema.keys(), name

    for pipeline in CLASSES:
        for parameter in (call_parameters(pipeline) or {}).values():
            if parameter.schema is not None:
                limited = bounded(parameter.name, parameter.schema, 100)
                walk(limited, f"{pipeline}.{parameter.name}")
                if parameter.name.endswith("_steps") and "maximum" in limited:
                    assert limited["maximum"] == 100


def test_neither_torch_nor_diffusers_is_imported() -> None:
    code = (
        "import sys, pathlib\n"
        "from worker.catalog import registry\nfrom worker.catalog.call import Model\n"
        "from worker.catalog.interface import schema\n"
        "from worker.core.model import ModelSource, Task\n"
        "parse = lambda text: ModelSource(scheme='hf', locator=text)\n"
        "found = registry.load_registry(pathlib.Path('models.yaml'), parse_source=parse)\n"
        "for spec in found.models.values():\n"
        "    schema.model_schema(Model.declared(spec), max_images=8, max_loras=8)\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_bound_is_what_check_inputs_refuses_by_itself():
    """`if stg_scale > 0 and blocks is None: raise` asks for more than a number, and bounds none."""
    assert "maximum" not in call_parameters("LTX2Pipeline")["stg_scale"].schema
    assert "maximum" not in call_parameters("MarigoldDepthPipeline")["ensemble_size"].schema
    assert call_parameters("FluxPipeline")["max_sequence_length"].schema["maximum"] == 512


def test_the_parts_that_a_class_cannot_do_without_are_read_from_its_source():
    assert "image_encoder" in needed_parts("HunyuanVideo15ImageToVideoPipeline")
    assert "transformer_2" not in needed_parts("WanPipeline")
    assert needed_parts("NoSuchPipeline") == frozenset()


def test_strength_redraws_unless_the_class_has_a_strength_for_that():
    assert regenerates_by_strength("StableDiffusionImg2ImgPipeline")
    assert not regenerates_by_strength("LTXConditionPipeline")
    assert not regenerates_by_strength("StableDiffusionPipeline")


@pytest.mark.parametrize("name", [*sorted(known_pipelines())[::60], "QwenImageLayeredPipeline"])
def test_the_heads_of_a_class_say_what_its_whole_text_says(name: str) -> None:
    path = signatures._index()[name][0]
    definition = signatures._definition(path, name)
    assert definition is not None
    whole = next(
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef) and node.name == name
    )

    def said(cls: ast.ClassDef) -> object:
        methods = [part for part in cls.body if isinstance(part, ast.FunctionDef)]
        heads = [(method.name, ast.unparse(method.args)) for method in methods]
        checks = [ast.unparse(method) for method in methods if method.name == "check_inputs"]
        return heads, checks, [ast.unparse(part) for part in cls.body if isinstance(part, ast.Assign)]

    assert said(definition) == said(whole)


def test_a_text_that_goes_to_the_left_does_not_end_its_class() -> None:
    text = 'class A:\n    def __init__(self, x):\n        y = """\nleft\n"""\n\n    def __call__(self, z): ...\n'
    assert signatures._text_of("A", text) == "", "the whole file is parsed"
    assert "__call__" in signatures._heads_of(text)
