"""The memory that a training of all weights takes, said before anything is loaded."""

from worker.core.device import DeviceInfo
from worker.core.errors import UnsupportedModel
from worker.core.model import DENOISERS, ModelFiles

_GB = 10**9
_STORED, _LEARNT = 2, 16  # bytes of a weight in half precision; in float32 with its gradient and AdamW's two means


def too_large(model: str, family: str, weight_bytes: int | None) -> str:
    """Return the sentence for a model of a family that is not trained whole, from the bytes of its files."""
    size = "its weights"
    if weight_bytes:
        needed = weight_bytes / _STORED * _LEARNT / _GB
        size = f"the {weight_bytes / _GB:.1f} GB of its weights would take some {needed:.1f} GB of memory"
    return (
        f"method full learns every weight in float32, with its gradient and AdamW's state, which is for Stable "
        f"Diffusion 1 here; {model} is of {family}, and {size}: train a LoRA, or another model."
    )


def check_room(model: str, files: ModelFiles, device: DeviceInfo) -> None:
    """Raise UnsupportedModel where the denoiser's weights, gradients and AdamW's state do not fit into a GPU."""
    needed = sum(files.parameters.get(name, 0) for name in DENOISERS) * _LEARNT
    if device.type == "cuda" and needed > device.total_bytes:
        raise UnsupportedModel(
            f"method full of {model} takes {needed / _GB:.1f} GB for weights, gradients and AdamW's state, and "
            f"{device.name} has {device.total_bytes / _GB:.1f} GB; train a LoRA, or use a larger device.",
            field="method",
        )
