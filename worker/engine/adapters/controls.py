"""ControlNets and T2I-Adapters for the length of one job: beside the pipeline, as the class that uses them.

Nothing of the resident pipeline is touched: its parts are shared with a pipeline of another class, which is made for
the job (milliseconds) and dropped after it. The controls themselves stay in host memory and are on the device only
while they are needed, so that they never take memory from another job's images.
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
from worker.engine.classes import DTYPES
from worker.engine.loader import view
from worker.engine.resident import Resident
from worker.media.images import to_pil

_UNIONS = ("ControlNetUnionModel", "FluxControlNetModel", "QwenImageControlNetModel")
# Classes that hold several controls, where the pipelines do not wrap them themselves or wrap only a list.
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

    Each pipeline keeps the last `capacity` of its controls in host memory; they are dropped with the pipeline.
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
            net_class = type(nets[0]).__name__
            slot = "adapter" if net_class == "T2IAdapter" else "controlnet"
            host.pipe = view(resident.pipe, host.class_name, {slot: _together(net_class, nets)})
            if net_class == "ControlNetXSAdapter":
                _join(host.pipe, resident)
            yield Effect(reports_of(files, "scale"), _arguments(controls, nets))

    def _loaded(self, resident: Resident, files: Sequence[AdapterFiles[Control]]) -> list[nn.Module]:
        denoiser, dtype = denoiser_of(resident.pipe), DTYPES[resident.plan.dtype]
        # Closed before the call: the controls are in host memory, so the device gains no room when they go.
        with self._caches.opened(denoiser) as cache:
            return [cache.take(item.key, partial(load_control, item, denoiser, dtype)) for item in files]


def _together(class_name: str, nets: Sequence[nn.Module]) -> Any:
    """Return `nets` as a pipeline takes them: one alone, one for several images, or several in one module."""
    if len(nets) == 1:
        return nets[0]
    if class_name == "ControlNetUnionModel" and len(set(nets)) == 1:
        return nets[0]  # one for all images at once, as it was trained
    return _SEVERAL[class_name]([*dict.fromkeys(nets)] if class_name in _UNIONS and len(set(nets)) == 1 else [*nets])


def _arguments(controls: Sequence[Control], nets: Sequence[nn.Module]) -> dict[str, Any]:
    """Return the call's arguments: single values for one control, lists for several."""
    call = controls[0].call
    lists: list[tuple[str | None, list[Any]]] = [
        (call.images, [_image(control, net) for control, net in zip(controls, nets, strict=True)]),
        (call.scale, [float(control.spec.scale) for control in controls]),
        (call.start, [control.spec.start for control in controls]),
        (call.end, [control.spec.end for control in controls]),
    ]
    if len(controls) > 1 or controls[0].mode is not None:  # FLUX.1 counts its several ControlNets by their modes
        lists.append((call.mode, [control.mode for control in controls]))
    single = {call.end} if call.start is None else set()  # one for all, where it is a T2I-Adapter's
    return {
        name: values[0] if len(controls) == 1 or name in single else values
        for name, values in lists
        if name is not None
    }


def _image(control: Control, net: nn.Module) -> Any:
    """Return the image, grey for a T2I-Adapter of one channel."""
    image = to_pil(control.image)
    one_channel = type(net).__name__ == "T2IAdapter" and net.config.in_channels == 1
    return image.convert("L") if one_channel else image


@contextmanager
def _on_device(net: nn.Module, resident: Resident) -> Iterator[None]:
    """Hold a control on the device for the job, even where the model is offloaded: it runs at every step."""
    net.to(resident.plan.device)
    try:
        yield
    finally:
        net.to("cpu")


@contextmanager
def _left_as_it_was(net: nn.Module) -> Iterator[None]:
    """Remove afterwards what a pipeline hung below `net`: Z-Image's puts parts of the transformer there."""
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
    if not resident.plan.keeps_denoiser:
        raise UnsupportedModel(
            f"controlnets: a ControlNet-XS makes a second UNet, for which this device is too small beside "
            f"{resident.model}; use a ControlNet.",
            field="controlnets",
        )
    pipe.unet.to(torch.device(resident.plan.device), DTYPES[resident.plan.dtype])
