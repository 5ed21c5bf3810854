"""The text of diffusers' modular pipelines as syntax trees, file by file and by class."""

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from worker.catalog.classes.source_text import parsed

_CLASS = re.compile(r"^class[ \t]+(\w+)[ \t]*[(:]", re.MULTILINE)


def pipeline_definitions() -> Iterator[ast.ClassDef]:
    """Yield the classes of all files that define a modular pipeline or its blocks."""
    for path in _files():
        if path.name.startswith("modular_"):
            yield from (node for node in _tree(path) if isinstance(node, ast.ClassDef))


def block_definition(name: str) -> ast.ClassDef | None:
    """Return the definition of one class; None where no modular pipeline's folder has it."""
    return next((node for node in file_of(name) if isinstance(node, ast.ClassDef) and node.name == name), None)


def file_of(name: str) -> tuple[ast.stmt, ...]:
    """Return the statements of the file that defines the class; empty where none does."""
    path = _index().get(name)
    return () if path is None else _tree(path)


@lru_cache(maxsize=256)
def _tree(path: Path) -> tuple[ast.stmt, ...]:
    return tuple(parsed(path.read_text(encoding="utf-8", errors="replace")).body)


@lru_cache(maxsize=1)
def _index() -> Mapping[str, Path]:
    """Return the file of every class by its name. The text is only searched: to parse it all takes a second."""
    texts = ((path, path.read_text(encoding="utf-8", errors="replace")) for path in _files())
    return {name: path for path, text in texts for name in _CLASS.findall(text)}


@lru_cache(maxsize=1)
def _files() -> tuple[Path, ...]:
    """Return the files of all families: each has a folder of its own."""
    spec = importlib.util.find_spec("diffusers")
    folders = [Path(place) / "modular_pipelines" for place in (spec.submodule_search_locations or ())] if spec else []
    return tuple(path for folder in folders for path in sorted(folder.glob("*/*.py")))
