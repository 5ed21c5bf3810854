"""ControlNets and T2I-Adapters for the length of one job: beside the pipeline, as the class that draws with them.

Nothing of the resident pipeline is touched: its parts are shared with a pipeline of another class, which is made for
the job (milliseconds) and dropped after it. The controls themselves stay in host memory and are on the device only
while they are needed, so that they never stand in the way of another job's images.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from torch import nn

from worker.core.adapter import AdapterFiles, Control
from worker.core.errors import UnsupportedModel
from worker.engine.adapters.adapter_cache import AdapterCaches, denoiser_of
from worker.engine.adapters.control_files import load_control
from worker.engine.adapters.host import Effect, Host, reports_of
from worker.engine.arguments import to_pil
from worker.engine.classes import DTYPES
from worker.engine.loader import view
from worker.engine.pool import Resident

_UNIONS = ("ControlNetUnionModel", "FluxControlNetModel", "QwenImageControlNetModel")
# What holds several of a class, for those that the pipelines do not wrap themselves or wrap only in a list.
_SEVERAL: Mapping[str, type] = {
    "ControlNetModel": diffusers.MultiControlNetModel,
    "ControlNetUnionModel": MultiControlNetUnionModel,
    "FluxControlNetModel": diffusers.FluxMultiControlNetModel,
    "SD3ControlNetModel": diffusers.SD3MultiControlNetModel,
    "QwenImageControlNetModel": diffusers.QwenImageMultiControlNetModel,
    "HunyuanDiT2DControlNetModel": diffusers.HunyuanDiT2DMultiControlNetModel,
    "T2IAdapter": diffusers.MultiAdapter,
}


class ControlCache:
    """The controls of all resident pipelines. Used from the engine's thread only.

    Each pipeline keeps the last `capacity` of its controls in host memory; they are forgotten with the pipeline.
    """

    def __init__(self, capacity: int) -> None:
        self._caches: AdapterCaches[nn.Module] = AdapterCaches(capacity)

    @contextmanager
    def applied(self, host: Host, files: Sequence[AdapterFiles[Control]]) -> Iterator[Effect]:
        """Let the host's pipeline be one of the class that the job is for, with the controls.

        Raises IncompatibleAdapter for one whose sizes are not those of the model, CorruptFile for a damaged one.
        """
        resident, controls = host.resident, [item.adapter for item in files]
        nets = self._loaded(resident, files)
        with ExitStack() as stack:
            for net in dict.fromkeys(nets):
                stack.enter_context(_on_device(net, resident))
                stack.enter_context(_left_as_it_was(net))
            kind = type(nets[0]).__name__
            slot = "adapter" if kind == "T2IAdapter" else "controlnet"
            host.pipe = view(resident.pipe, host.class_name, {slot: _together(kind, nets)})
            if kind == "ControlNetXSAdapter":
                _join(host.pipe, resident)
            yield Effect(reports_of(files, "scale"), _arguments(controls, nets))

    def _loaded(self, resident: Resident, files: Sequence[AdapterFiles[Control]]) -> list[nn.Module]:
        denoiser, dtype = denoiser_of(resident.pipe), DTYPES[resident.plan.dtype]
        # Closed before the job draws: they are in host memory, so that nobody has more room when they go.
        with self._caches.opened(denoiser) as cache:
            return [cache.take(item.key, partial(load_control, item, denoiser, dtype)) for item in files]


def _together(kind: str, nets: Sequence[nn.Module]) -> Any:
    """What a pipeline takes for `nets`: one alone, one that sees several images, or several in one module."""
    if len(nets) == 1:
        return nets[0]
    if kind == "ControlNetUnionModel" and len(set(nets)) == 1:
        return nets[0]  # sees all images at once, as it was trained to
    return _SEVERAL[kind]([*dict.fromkeys(nets)] if kind in _UNIONS and len(set(nets)) == 1 else [*nets])


def _arguments(controls: Sequence[Control], nets: Sequence[nn.Module]) -> dict[str, Any]:
    """What the call gets: single values for one control, lists for several."""
    call = controls[0].call
    told: list[tuple[str | None, list[Any]]] = [
        (call.images, [_image(control, net) for control, net in zip(controls, nets, strict=True)]),
        (call.scale, [float(control.spec.scale) for control in controls]),
        (call.start, [control.spec.start for control in controls]),
        (call.end, [control.spec.end for control in controls]),
    ]
    if len(controls) > 1 or controls[0].mode is not None:  # FLUX.1 counts its several ControlNets by their modes
        told.append((call.mode, [control.mode for control in controls]))
    alone = {call.end} if call.start is None else set()  # one for all, where it is a T2I-Adapter's
    return {
        name: values[0] if len(controls) == 1 or name in alone else values for name, values in told if name is not None
    }


def _image(control: Control, net: nn.Module) -> Any:
    """The image, grey for a T2I-Adapter that sees one channel."""
    image = to_pil(control.image)
    one_channel = type(net).__name__ == "T2IAdapter" and net.config.in_channels == 1
    return image.convert("L") if one_channel else image


@contextmanager
def _on_device(net: nn.Module, resident: Resident) -> Iterator[None]:
    """On the device for the job, whatever of the model is: a control runs at every step."""
    net.to(resident.plan.device)
    try:
        yield
    finally:
        net.to("cpu")


@contextmanager
def _left_as_it_was(net: nn.Module) -> Iterator[None]:
    """Take off what a pipeline hung below it: Z-Image's puts parts of the transformer there."""
    modules, parameters = dict(net._modules), dict(net._parameters)
    try:
        yield
    finally:
        net._modules.clear()
        net._modules.update(modules)
        net._parameters.clear()
        net._parameters.update(parameters)


def _join(pipe: Any, resident: Resident) -> None:
    """Put a ControlNet-XS's UNet on the device: the pipeline makes a new one of the model's and the adapter."""
    if resident.plan.offload != "none":
        raise UnsupportedModel(
            f"controlnets: a ControlNet-XS makes a second UNet, for which this device is too small beside "
            f"{resident.model}; use a ControlNet.",
            field="controlnets",
        )
    pipe.unet.to(torch.device(resident.plan.device), DTYPES[resident.plan.dtype])
