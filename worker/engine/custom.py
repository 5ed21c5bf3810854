"""Pipeline classes of the operator's own files: imported when the first model needs one, and run with all rights."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.core.errors import LoadFailed

_files: dict[str, Path] = {}


def serve_custom(files: Mapping[str, Path]) -> None:
    """Have these classes built from the files that define them, in place of those of an earlier call."""
    _files.clear()
    _files.update(files)


def custom_class(name: str) -> Any:
    """Return what an operator's file calls so; None where no file does. Raises LoadFailed for a broken file."""
    path = _files.get(name)
    if path is None:
        return None
    module_name = f"custom_pipelines_{abs(hash(path.absolute()))}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise LoadFailed(f"{path.name} of CUSTOM_PIPELINES cannot be imported.", field="model")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # diffusers looks a class's module up by its name
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise LoadFailed(
                f"{path.name} of CUSTOM_PIPELINES cannot be imported ({type(error).__name__}); mend it.",
                field="model",
            ) from error
    return getattr(module, name, None)
