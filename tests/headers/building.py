"""What the makers of stripped headers share: models on the meta device, and the writer of a header."""

import gzip
import json
import re
import sys
from pathlib import Path

import diffusers
import torch
from layouts import Shapes

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "worker" / "catalog" / "configs"


def write(
    name: str,
    shapes: Shapes,
    dtype: str = "F16",
    metadata: dict[str, str] | None = None,
    container: str = "safetensors",
    **dtypes: str,
) -> None:
    """Store one header. `dtypes` maps the end of a name to another dtype."""
    tensors = {
        key: [next((other for end, other in dtypes.items() if key.endswith(end)), dtype), list(shape)]
        for key, shape in sorted(shapes.items())
    }
    text = json.dumps({"container": container, "metadata": metadata or {}, "tensors": tensors}, separators=(",", ":"))
    (HERE / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{name}: {len(tensors)} tensors", file=sys.stderr)


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def build(name: str, **config: object) -> Shapes:
    """Return the tensors of a diffusers model with this configuration."""
    with torch.device("meta"):
        return shapes_of(getattr(diffusers, name).from_config(config))


def bundled(path: str, **changes: object) -> Shapes:
    config = json.loads((CONFIGS / path / "config.json").read_text())
    name = config.pop("_class_name")
    return build(name, **config | changes)


def must_convert(original: Shapes, wanted: Shapes, converter: object, **arguments: object) -> None:
    """Fail unless diffusers' converter turns the original names into exactly the wanted ones."""
    meta = {name: torch.empty(shape, device="meta") for name, shape in original.items()}
    back = {name: tuple(tensor.shape) for name, tensor in converter(meta, **arguments).items()}
    assert back == wanted, sorted(set(back.items()) ^ set(wanted.items()))[:6]


def linears(shapes: Shapes, pattern: str) -> Shapes:
    """Return the two-dimensional weights whose module name matches, by module name."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and re.search(pattern, name)
    }


def low_rank(modules: Shapes, down: str, up: str, rank: int = 16, alpha: bool = False) -> Shapes:
    result: Shapes = {}
    for name, (outputs, inputs) in modules.items():
        result |= {f"{name}.{down}.weight": (rank, inputs), f"{name}.{up}.weight": (outputs, rank)}
        if alpha:
            result[f"{name}.alpha"] = ()
    return result


def kohya(modules: Shapes, prefix: str) -> Shapes:
    return {prefix + name.replace(".", "_"): shape for name, shape in modules.items()}


def dotted(modules: Shapes, prefix: str) -> Shapes:
    return {prefix + name: shape for name, shape in modules.items()}
