"""Pipeline classes of the operator's own, beside diffusers': read from their text as any other is; nothing is run."""

import ast
from collections.abc import Mapping
from pathlib import Path

from worker.catalog.classes import inputs, signatures
from worker.catalog.pipelines.table import add_rows
from worker.core.pipeline import PipelineRow


def class_names(text: str) -> tuple[tuple[str, int], ...]:
    """List the pipeline classes that a file defines, each with its line. Raises SyntaxError."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return tuple((node.name, node.lineno) for node in nodes if "Pipeline" in node.name and node.name[0].isupper())


def serve_custom(files: Mapping[str, Path]) -> None:
    """Have these classes known, each by the file that defines it, in place of those of an earlier call.

    What was read of signatures before is forgotten: a name may mean another class now.
    """
    rows = tuple(PipelineRow(name, source=str(path.absolute())) for name, path in sorted(files.items()))
    if add_rows(rows):
        for known in (
            *(signatures.call_parameters, signatures.part_classes, signatures.needed_parts, signatures.size_step),
            inputs.slots_of,
        ):
            known.cache_clear()
