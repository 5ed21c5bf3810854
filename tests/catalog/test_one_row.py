"""Facts of a class stand in its row, facts of a family in its row: no other module names one to decide about it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.classes.modular import modular_pipelines
from worker.catalog.classes.signatures import known_pipelines
from worker.catalog.pipelines.controlled import CONTROLLED
from worker.catalog.pipelines.table import PIPELINES

WORKER = Path(__file__).resolve().parents[2] / "worker"
ROWS = ("catalog/families/", "catalog/pipelines/")
# Each tells a kind of file, whose rows are tried in an order of their own: a union before the plain one, an IP-Adapter
# of Kolors before SDXL's, which is as wide. What such a file belongs to is one column of them.
FAMILIES_TOO = {"catalog/detectors/companions.py", "catalog/detectors/controlnets.py"}
# The names that another program's format has for denoisers, some of which are those of families here.
FAMILIES_TOO |= {"engine/gguf_writing.py"}
# What a plan without a class is loaded as: the base class of diffusers, which looks for the class itself.
CLASSES_TOO = {("engine/plan.py", "DiffusionPipeline")}

# What diffusers' pipelines are called, what their results are called aside, and the worker's own.
CLASSES = {name for name in known_pipelines() if "Pipeline" in name and not name.endswith("Output")} | set(PIPELINES)
BEGINNINGS = {name[:length] for name in CLASSES for length in range(4, len(name) + 1)}
LOOKS = {"compile", "startswith", "match", "fullmatch", "search"}
FAMILIES = {row.id for row in ARCHITECTURES}
MODULES = sorted(WORKER.rglob("*.py"))


def texts(source: str) -> Iterator[str]:
    """The string constants of a module, docstrings aside."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    firsts = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    docstrings = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def classes_in(source: str) -> set[str]:
    """The pipeline classes that a module's constants name, be it in a sentence."""
    return {word for text in texts(source) for word in re.findall(r"\w+", text)} & CLASSES


def beginnings_in(source: str) -> set[str]:
    """What a module looks for in names, by a pattern or a beginning, that is the beginning of a class's name."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    asking = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in LOOKS]
    given = [part for call in asking for argument in call.args for part in ast.walk(argument)]
    looked_for = [part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return {word for text in looked_for for word in re.findall(r"[A-Z]\w{3,}", text) if word in BEGINNINGS}


def families_in(source: str) -> set[str]:
    """The families that a module's constants are the ids of."""
    return set(texts(source)) & FAMILIES


def place(path: Path) -> str:
    return path.relative_to(WORKER).as_posix()


@pytest.fixture(scope="module")
def others() -> dict[str, str]:
    """The sources of the modules that are no rows."""
    sources = {place(path): path.read_text(encoding="utf-8") for path in MODULES}
    return {name: source for name, source in sources.items() if not name.startswith(ROWS)}


def test_no_other_module_names_a_class(others):
    """Say it in the class's row, in worker/catalog/pipelines."""
    found = {(name, named) for name, source in others.items() for named in classes_in(source)}
    assert found - CLASSES_TOO == set()


def test_no_other_module_looks_for_the_beginning_of_a_class(others):
    """Say it in the rows, or in pipelines/names.py."""
    assert {(name, word) for name, source in others.items() for word in beginnings_in(source)} == set()


def test_no_other_module_names_a_family(others):
    """Say it in the family's row, in worker/catalog/families."""
    sources = {name: source for name, source in others.items() if name not in FAMILIES_TOO}
    assert {(name, word) for name, source in sources.items() for word in families_in(source)} == set()


def test_the_names_that_are_looked_for_are_all_that_diffusers_has():
    assert {"StableDiffusionPipeline", "LEditsPPPipelineStableDiffusion", "SpandrelUpscalePipeline"} <= CLASSES
    served = {name for row in ARCHITECTURES for name in (*row.pipelines.values(), *row.classes)}
    assert served | {row.pipeline for row in CONTROLLED} | {row.plain for row in CONTROLLED} <= CLASSES
    assert len(MODULES) > 200


@pytest.mark.parametrize(
    "source",
    [
        '_ALONE = frozenset({"PRXPipeline"})',
        '_FPS = {"wan": 16}\nname = "KandinskyPriorPipeline"',
        'def f():\n    """Of PRXPipeline."""\n    return f"use PRXPipeline, not {f}"',
        '_EDITS = re.compile("LEditsPPPipelineStableDiffusion(XL)?")',
    ],
)
def test_a_class_is_seen_wherever_it_is_named(source):
    assert classes_in(source)


def test_the_beginning_of_a_class_is_seen_where_names_are_looked_at():
    assert beginnings_in('VIDEO = re.compile(r"^(?:LEditsPP|Mochi)")') == {"LEditsPP", "Mochi"}
    assert beginnings_in('def f(name):\n    return name.startswith("StableDiffusion3")') == {"StableDiffusion3"}
    assert not beginnings_in('title = "Stable Diffusion 3"\nkind = re.compile("T5EncoderModel")')


def test_a_family_is_seen_and_a_docstring_is_not():
    assert families_in('_FPS = {"wan": 16.0}') == {"wan"}
    assert families_in('ids = ("sd1", "x")') == {"sd1"}
    assert not families_in('"""sd1"""\ndef f():\n    """sd1"""\n')
    assert not classes_in('class A:\n    """WanPipeline"""\n')


def test_each_row_says_something_and_of_a_class_that_there_is():
    for name, row in PIPELINES.items():
        assert row != type(row)(name), f"{name} is ordinary and needs no row"
        assert row.source or name in known_pipelines() | {*modular_pipelines()}, (
            f"{name} is no class of the installed diffusers"
        )
