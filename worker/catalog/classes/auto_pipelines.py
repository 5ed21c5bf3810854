"""The classes of a family by task, as the installed diffusers declares them: for families without a row.

Read from the source text of its AutoPipeline tables, like call signatures: importing diffusers would import torch.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from worker.catalog.classes.source_text import parsed
from worker.core.model import Task

_TABLES = {
    "AUTO_TEXT2IMAGE_PIPELINES_MAPPING": Task.TEXT_TO_IMAGE,
    "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING": Task.IMAGE_TO_IMAGE,
    "AUTO_INPAINT_PIPELINES_MAPPING": Task.INPAINTING,
    "AUTO_TEXT2VIDEO_PIPELINES_MAPPING": Task.TEXT_TO_VIDEO,
    "AUTO_IMAGE2VIDEO_PIPELINES_MAPPING": Task.IMAGE_TO_VIDEO,
    "AUTO_VIDEO2VIDEO_PIPELINES_MAPPING": Task.VIDEO_TO_VIDEO,
}


def auto_pipelines(class_name: str | None) -> Mapping[Task, str]:
    """Return the classes that take the same weights as `class_name`, by task; empty where diffusers knows none."""
    families = (family for family in _families().values() if class_name in family.values())
    return MappingProxyType(next(families, {}))


@cache
def _families() -> dict[str, dict[Task, str]]:
    """Return the class of each task by the family names of diffusers' tables."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return {}
    path = Path(spec.origin).parent / "pipelines" / "auto_pipeline.py"
    families: dict[str, dict[Task, str]] = {}
    if path.is_file():
        tables = path.read_text(encoding="utf-8").partition("\ndef ")[0]  # the functions come after them
        for table, family, name in _entries(parsed(tables)):
            families.setdefault(family, {})[_TABLES[table]] = name
    return families


def _entries(module: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield table, family and class.

    They stand in `TABLE = OrderedDict([("family", Class), …])`, and later in `TABLE["family"] = Class`.
    """
    for node in ast.walk(module):
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name) and target.id in _TABLES:
            pairs = [pair.elts for pair in ast.walk(value) if isinstance(pair, ast.Tuple) and len(pair.elts) == 2]
            table = target.id
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and target.value.id in _TABLES:
            pairs, table = [[target.slice, value]], target.value.id
        else:
            continue
        for family, cls in pairs:
            if isinstance(family, ast.Constant) and isinstance(cls, ast.Name):
                yield table, str(family.value), cls.id
