"""Tiny random upscaler files in the layouts that people share, made by the networks that spandrel builds."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from worker.engine.compatibility import import_spandrel

torch.set_num_threads(1)


def network(kind: str, seed: int = 0) -> torch.nn.Module:
    """A network of a published architecture with random weights, scaled so that its output depends on its input."""
    import_spandrel()
    from spandrel.architectures import ESRGAN, SPAN, Compact, SwinIR

    builds = {
        "esrgan": lambda: ESRGAN.ESRGAN(num_filters=8, num_blocks=1, scale=4),
        "esrgan-x2": lambda: ESRGAN.ESRGAN(num_filters=8, num_blocks=1, scale=2, upsampler="upconv"),
        "compact": lambda: Compact.Compact(num_feat=8, num_conv=2, upscale=4),
        "span": lambda: SPAN.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
        "swinir": lambda: SwinIR.SwinIR(
            img_size=16,
            embed_dim=12,
            depths=[2],
            num_heads=[2],
            window_size=8,
            mlp_ratio=2,
            upscale=2,
            upsampler="pixelshuffle",
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = builds[kind]().eval()
        if kind.startswith("esrgan"):  # as it comes, its output is next to nothing
            last = [part for part in built.modules() if isinstance(part, torch.nn.Conv2d)][-1]
            last.weight.data *= 8
            last.bias.data += 0.5
    return built


# Real-ESRGAN renamed the layers of ESRGAN, as BasicSR has them.
_RENAMED = (
    (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.1\.", "conv_body."),
    (r"^model\.3\.", "conv_up1."),
    (r"^model\.6\.", "conv_up2."),
    (r"^model\.8\.", "conv_hr."),
    (r"^model\.10\.", "conv_last."),
)


def real_esrgan(name: str) -> str:
    """An ESRGAN layer's name in Real-ESRGAN's spelling."""
    return next(re.sub(old, new, name) for old, new in _RENAMED if re.match(old, name))


def upscaler(
    path: Path, kind: str = "esrgan", *, prefix: str = "", seed: int = 0, rename: Callable[[str], str] = str
) -> Path:
    """Save one as `path`: safetensors, or a pickle as training code leaves it, with its tensors below `prefix`."""
    weights = {rename(name): tensor for name, tensor in network(kind, seed).state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save({prefix: weights} if prefix else weights, path)
    else:
        save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def enlarged(kind: str, image: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the network makes of a whole HxWx3 image at once."""
    spandrel = import_spandrel()
    model = spandrel.ModelLoader().load_from_state_dict(network(kind, seed).state_dict())
    model.model.eval()
    given = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return (model(given)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
