"""Hypernetworks for the length of one job: small networks that change the inputs of attention's keys and values.

AUTOMATIC1111's layout and formula, for Stable Diffusion 1 and 2. For each width there is a pair of networks, one for
keys and one for values. In every attention of the UNet whose context is that wide (self attention too), `to_k` and
`to_v` get `x + network(x) * weight` in place of `x`. Several are applied one after the other. Dropout is for training
only.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from worker.core.adapter import Adapter, AdapterFiles, HypernetworkSpec
from worker.core.errors import CorruptFile, IncompatibleAdapter, UnsupportedModel
from worker.engine.adapters.adapter_cache import AdapterCaches
from worker.engine.adapters.host import Effect, Host, reports_of

Hypernetwork = AdapterFiles[Adapter[HypernetworkSpec]]

# Names of AUTOMATIC1111's web UI; its "swish" is torch's hard one.
_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish, "hardswish": nn.Hardswish,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid, "hardtanh": nn.Hardtanh,
    "hardshrink": nn.Hardshrink, "softshrink": nn.Softshrink, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid, "tanhshrink": nn.Tanhshrink, "mish": nn.Mish, "gelu": nn.GELU, "silu": nn.SiLU,
    "selu": nn.SELU, "celu": nn.CELU, "relu6": nn.ReLU6,
}  # fmt: skip
_KEY = re.compile(r"(\d+)\.([01])\.linear(?:\.(\d+)|([12]))\.(weight|bias)")
_SIDES = ("to_k", "to_v")

# Width of the context -> the networks of its keys and of its values.
Networks = Mapping[int, Mapping[str, nn.Module]]


@dataclass(frozen=True, slots=True)
class _Structure:
    """The properties of a network that its tensors do not show."""

    activation: Callable[[], nn.Module] | None
    at_the_end: bool  # True if the last layer has an activation too


class HypernetworkCache:
    """The hypernetworks of all resident pipelines. Used from the engine's thread only.

    Each pipeline keeps the last `capacity` of them, by their files' content; they are dropped with the pipeline.
    """

    def __init__(self, capacity: int) -> None:
        self._caches: AdapterCaches[Networks] = AdapterCaches(capacity)

    @contextmanager
    def applied(self, host: Host, adapters: Sequence[Hypernetwork]) -> Iterator[Effect]:
        """Put `adapters` on the UNet of the pipeline in their order, and take them off whatever happens."""
        unet = host.pipe.unet
        with self._caches.opened(unet) as cache, ExitStack() as stack:
            for adapter in adapters:
                networks = cache.take(adapter.key, partial(_read, adapter))
                stack.enter_context(_hooked(unet, networks, adapter, host.model))
            yield Effect(reports_of(adapters, "weight"))


@contextmanager
def _hooked(unet: nn.Module, networks: Networks, adapter: Hypernetwork, model: str) -> Iterator[None]:
    """Hook one hypernetwork in; none of weight 0. Raises IncompatibleAdapter where no attention is as wide."""
    weight = adapter.adapter.spec.weight
    layers = [
        (module, networks[module.in_features][side])
        for path, module in unet.named_modules()
        if (side := path.rpartition(".")[2]) in _SIDES and isinstance(module, nn.Linear)
        if module.in_features in networks and "motion_modules" not in path  # of AnimateDiff: attention over time
    ]
    if not layers:
        widths = ", ".join(map(str, networks))
        raise IncompatibleAdapter(
            f"hypernetworks: {adapter.model} is for attention of {widths} channels, and {model} has none of "
            "these; use one that was trained for this model's family.",
            field="hypernetworks",
        )
    with ExitStack() as stack:
        for module, network in layers if weight else ():
            stack.callback(module.register_forward_pre_hook(_changing(network, weight)).remove)
        yield


def _changing(network: nn.Module, weight: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def change(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        parameter = next(network.parameters())
        if parameter.device != x.device or parameter.dtype != x.dtype:
            network.to(x.device, x.dtype)
        return (x + network(x) * weight, *args[1:])

    return change


def _read(adapter: Hypernetwork) -> Networks:
    try:
        with safe_open(adapter.files.root, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptFile(
            f"hypernetworks: {adapter.model} cannot be read ({type(error).__name__}); fetch it again.",
            field="hypernetworks",
        ) from None
    structure = _structure(metadata, adapter.model)
    layers: dict[int, dict[str, dict[int, dict[str, Tensor]]]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match:
            width, side, at = int(match[1]), _SIDES[int(match[2])], int(match[3] or int(match[4]) - 1)
            layers.setdefault(width, {}).setdefault(side, {}).setdefault(at, {})[match[5]] = tensor
    try:
        return {
            width: {side: _network(sides[side], structure, width) for side in _SIDES} for width, sides in layers.items()
        }
    except (KeyError, RuntimeError, ValueError):
        raise CorruptFile(
            f"hypernetworks: {adapter.model} lacks layers, or they do not fit each other; fetch it again.",
            field="hypernetworks",
        ) from None


def _structure(metadata: Mapping[str, str], model: str) -> _Structure:
    name = metadata.get("activation_func", "linear").strip('"').lower()
    if name in ("linear", "none", "null", ""):
        return _Structure(None, False)
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(
            f"hypernetworks: {model} has the activation {name[:40]}, which is not known here; it may be one of "
            f"{', '.join(_ACTIVATIONS)}.",
            field="hypernetworks",
        )
    at_the_end = metadata.get("activate_output", "true")
    return _Structure(_ACTIVATIONS[name], at_the_end.strip().lower() != "false")


def _network(layers: Mapping[int, Mapping[str, Tensor]], structure: _Structure, width: int) -> nn.Module:
    """Build one network from its tensors by position: linear layers, norms behind some, and activations between."""
    linears = [at for at in sorted(layers) if layers[at]["weight"].ndim == 2]
    modules: list[nn.Module] = []
    for at in sorted(layers):
        weight, bias = layers[at]["weight"], layers[at]["bias"]
        if at not in linears:
            norm = nn.LayerNorm(len(weight))
            norm.load_state_dict({"weight": weight.float(), "bias": bias.float()})
            modules.append(norm)
            continue
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        modules.append(linear)
        if structure.activation is not None and (at != linears[-1] or structure.at_the_end):
            modules.append(structure.activation())
    network = nn.Sequential(*modules).eval().requires_grad_(False)
    if network(torch.zeros(1, width)).shape != (1, width):
        raise ValueError("another width comes out than went in")
    return network
