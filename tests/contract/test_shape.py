"""The measure of the code: files, functions, parameter lists and branches stay few enough to be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

from radon.complexity import cc_visit

PROJECT = Path(__file__).parents[2]
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_COMPLEXITY = 400, 60, 7, 15
# What is one decision with many sides, and would not be clearer in pieces.
INTRICATE = {
    "worker/service/local/provisioning.py Provisioner.model_files",
    "worker/service/local/adapters/image_prompts.py _choose_file",
}
FILES = sorted(
    path
    for room in ("worker", "image_client")
    for path in (PROJECT / room).rglob("*.py")
    if not path.is_relative_to(PROJECT / "image_client" / "build")  # what pip leaves there
)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the worker and of the client, with its place."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PROJECT)}:{node.lineno} {node.name}", node


def test_no_file_is_long() -> None:
    lines = {str(path.relative_to(PROJECT)): len(path.read_text().splitlines()) for path in FILES}
    assert len(lines) > 100
    assert not {name: count for name, count in lines.items() if count > MAX_FILE_LINES}


def test_no_function_is_long() -> None:
    lengths = {place: (node.end_lineno or 0) - node.lineno + 1 for place, node in functions()}
    assert not {place: count for place, count in lengths.items() if count > MAX_FUNCTION_LINES}


def test_no_function_takes_many_parameters() -> None:
    counts = {}
    for place, node in functions():
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        counts[place] = len([name for name in names if name not in ("self", "cls")])
    assert not {place: count for place, count in counts.items() if count > MAX_PARAMETERS}


def test_a_model_or_an_adapter_travels_with_what_its_file_shows() -> None:
    pairs = [
        place
        for place, node in functions()
        if {"spec", "detection"} <= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    ]
    # What makes them one: `resolving.py` merges the two, and the catalog judges them before there is a model.
    assert len(pairs) <= 5, pairs


def test_no_function_has_many_branches() -> None:
    intricate = {
        f"{path.relative_to(PROJECT)} {block.fullname}": block.complexity
        for path in FILES
        for block in cc_visit(path.read_text())
        if block.letter != "C" and block.complexity > MAX_COMPLEXITY
    }
    assert intricate.keys() == INTRICATE
