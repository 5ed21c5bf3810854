"""Whether a value fits: as the package jsonschema says, for each schema that a parameter of a pipeline has."""

import ast
import json
import sys

import pytest
from jsonschema import Draft202012Validator

from worker.catalog.call import Model
from worker.catalog.classes.annotations import written
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.fitting import fits
from worker.catalog.interface.parameters import parameters
from worker.core.model import Detection, Kind, ModelSource, ModelSpec

VALUES = [
    None, True, False, 0, 1, -1, 7, 8, 64, 2**40, 0.0, 0.5, 1.0, 8.5, 512.0, -0.1, "", "a", "x" * 9_000, "auto", "none",
    [], [1], [0.5, 1], [True], [None], ["a"], [[1.0, 2], [3]], [1, 2, 3, 4, 5], {}, {"a": 1},
]  # fmt: skip
CLASSES = (
    "FluxPipeline", "StableDiffusionXLInpaintPipeline", "WanVACEPipeline", "Cosmos3OmniPipeline",
    "LTXI2VLongMultiPromptPipeline", "StableDiffusionDiffEditPipeline", "TextToVideoZeroPipeline",
    "AnyFlowFARPipeline", "VisualClozePipeline",
)  # fmt: skip
# Beyond what parameters have.
OTHERS = [
    {"enum": [1, "a", None]}, {"enum": [True]}, {"enum": [[1], "a"]}, {"type": ["integer", "null"]}, {"const": 1},
    {"multipleOf": 0.25}, {"type": "integer", "multipleOf": 8}, {"minLength": 1}, {"type": "object"},
    {"items": {"enum": [1]}, "minItems": 1, "maxItems": 2}, {"exclusiveMinimum": 0}, {"pattern": "^a"}, {},
]  # fmt: skip


def of_parameters():
    source = ModelSource(scheme="hf", locator="org/model")
    found = {}
    for name in CLASSES:
        model = Model(ModelSpec(id="m", source=source), Detection(Kind.PIPELINE, "diffusers", None, name))
        for schema in (each for call in model.calls for each in parameters(call).values()):
            bare = {key: value for key, value in schema.items() if key not in ("default", "description")}
            found[json.dumps(bare, sort_keys=True)] = schema
    return list(found.values())


def test_a_value_fits_where_the_package_says_so():
    schemas = of_parameters()
    assert len(schemas) > 30
    wrong = [
        (value, schema)
        for schema in (*schemas, *OTHERS)
        for value in VALUES
        if fits(value, schema) is not Draft202012Validator(schema).is_valid(value)
    ]
    assert wrong == []


def test_parameters_are_checked_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # to import it fails now
    assert fits(8, {"type": "integer", "minimum": 1})
    assert not fits([0], {"items": {"minimum": 1}})
    with pytest.raises(ImportError):
        fits(1, {"const": 1})


@pytest.mark.parametrize(
    "text",
    [
        "int", "np.ndarray", "str | None", "int | (str | None)", "list[str]", "dict[str, int]", "tuple[int, ...]",
        "Optional[Union[str, List[str]]]", "tuple[()]", "x[1:2]", "a[(b,)]", "Callable[[int], None]",
        "'quoted' | None", "-1 | None",
    ],
)  # fmt: skip
def test_an_annotation_is_written_as_python_itself_writes_it(text):
    node = ast.parse(text, mode="eval").body
    assert written(node) == ast.unparse(node)


def test_the_annotations_of_the_installed_diffusers_are_written_as_python_writes_them(monkeypatch):
    seen = []
    monkeypatch.setattr("worker.catalog.classes.signatures.written", lambda node: seen.append(node) or written(node))
    for name in ("FluxPipeline", "StableDiffusionXLPipeline", "WanVACEPipeline"):
        assert call_parameters.__wrapped__(name)
    assert len(seen) > 50
    assert all(written(node) == ast.unparse(node) for node in seen)
