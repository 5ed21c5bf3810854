"""Dtypes that a class cannot compute in: found in its source, so that a new release of diffusers shows new ones."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from worker.catalog.classes.refusals import refusal
from worker.catalog.pipelines.names import named_medium
from worker.catalog.pipelines.table import pipeline_row

# Classes that call `.numpy()` on something that is never of the model's dtype, and why.
HARMLESS = {
    "Cosmos3OmniPipeline": "frames for a guardrail that no worker has",
    "Kandinsky6TI2VAPipeline": "sound, made float32 before",
    "LTX2ConditionPipeline": "a caller's own tensors",
    "LTX2DFRPipeline": "a caller's own tensors, and bytes",
    "LTX2DFRTemporalRefinePipeline": "a caller's own tensors",
    "LTX2InContextPipeline": "a caller's own tensors",
    "MarigoldDepthPipeline": "maps that it has made float32",
    "StableDiffusionDiffEditPipeline": "zeros and ones, which are integers",
    "UniDiffuserPipeline": "words' numbers",
}
_NAMED = re.compile(r"class (\w+Pipeline)\b")
_CALLED = re.compile(r"^(?!.*(?:float\(\)|>>>)).*\.numpy\(\)", re.MULTILINE)


def served_classes() -> Iterator[ast.ClassDef]:
    package = importlib.util.find_spec("diffusers")
    for path in sorted((Path(package.origin).parent / "pipelines").rglob("pipeline_*.py")):
        text = path.read_text(encoding="utf-8")
        for part in re.split(r"^(?=class )", text, flags=re.MULTILINE):  # to parse the whole takes seconds
            name = _NAMED.match(part)
            if name and _CALLED.search(part) and refusal(name[1]) is None and named_medium(name[1]) is None:
                yield next(node for node in ast.parse(part).body if isinstance(node, ast.ClassDef))


def hands_over_its_dtype(node: ast.ClassDef) -> bool:
    calls = (part for part in ast.walk(node) if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute))
    return any(call.func.attr == "numpy" and "float()" not in ast.unparse(call) for call in calls)


def test_a_class_that_hands_its_tensors_to_numpy_takes_no_bfloat16():
    found = {node.name for node in served_classes() if hands_over_its_dtype(node)}
    assert found >= {"RePaintPipeline", "LDMTextToImagePipeline", "LDMSuperResolutionPipeline", "VQDiffusionPipeline"}
    limited = {name for name in found if "bfloat16" not in pipeline_row(name).dtypes}
    assert found - limited == HARMLESS.keys() & found
    assert limited.isdisjoint(HARMLESS)
