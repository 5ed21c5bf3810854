"""IP-Adapters for the length of one job: attention that also looks at images, put on and taken off exactly.

diffusers' own loader is used only for the names of every layout. Its converters make the modules
(`_convert_ip_adapter_…` of the denoiser's class, called with a stand-in for the denoiser). This file puts them where
`load_ip_adapter` would. That function itself replaces the processors of all layers by new ones, moves the whole
denoiser, does not restore the former ones when it unloads, and reads the file anew for each job.

- A processor is swapped only where an adapter has something to say, and the very same object comes back afterwards.
- A LoRA's hooks sit on the layers that the new processors call too, so both work at once, in any order.
- Several adapters share one processor, each with its own scale; one of scale 0 is not put on at all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders.transformer_flux import FluxTransformer2DLoadersMixin
from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin
from diffusers.loaders.unet import UNet2DConditionLoadersMixin
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worker.core.adapter import AdapterFiles, ImagePrompt
from worker.core.errors import CorruptFile, IncompatibleAdapter, UnsupportedModel
from worker.core.single_file import unwrapped
from worker.engine.adapters.adapter_cache import AdapterCache, AdapterCaches, denoiser_of
from worker.engine.adapters.host import Effect, Host, reports_of
from worker.engine.adapters.image_encoders import Encoder, load_encoder
from worker.engine.adapters.offloading import Offloading
from worker.engine.adapters.swapping import swapped
from worker.engine.devices import is_out_of_memory
from worker.media.images import to_pil

_FIELD = "ip_adapters"
Prompted = AdapterFiles[ImagePrompt]
State = Mapping[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter's modules, made for one denoiser: attention processors by their place, and the projection."""

    processors: Mapping[str, nn.Module]
    projection: nn.Module


@dataclass(frozen=True, slots=True)
class _Family:
    """The way in which the denoisers of one class take image prompts."""

    mixin: type
    processor: type[nn.Module]
    attention: Callable[[State], Any]  # the argument of the processors' converter
    several: bool = True


_FAMILIES: tuple[_Family, ...] = (
    _Family(UNet2DConditionLoadersMixin, IPAdapterAttnProcessor2_0, lambda state: [state]),
    _Family(FluxTransformer2DLoadersMixin, FluxIPAdapterAttnProcessor, lambda state: [state]),
    _Family(
        SD3Transformer2DLoadersMixin,
        SD3IPAdapterJointAttnProcessor2_0,
        lambda state: state["ip_adapter"],
        several=False,
    ),
)


class ImagePromptCache:
    """The IP-Adapters of all resident pipelines, and the image encoder of each. Used from the engine's thread only.

    Each pipeline keeps the last `capacity` of its adapters by their files' content, and one encoder; they are dropped
    with the pipeline, and when memory runs out.
    """

    def __init__(self, capacity: int) -> None:
        self._caches: AdapterCaches[Loaded] = AdapterCaches(capacity)
        self._encoders: AdapterCaches[Encoder] = AdapterCaches(1)

    @contextmanager
    def applied(self, host: Host, files: Sequence[Prompted]) -> Iterator[Effect]:
        """Let the pipeline look at the prompts' images, and yield its call's arguments for them.

        Raises IncompatibleAdapter for an adapter that does not fit the denoiser, CorruptFile for a damaged one.
        """
        pipe, offloading, model = host.pipe, host.offloading, host.model
        active = [file for file in files if file.adapter.spec.scale]
        if not active:
            yield Effect(reports_of(files, "scale"))
            return
        denoiser = denoiser_of(pipe)
        family = next((row for row in _FAMILIES if isinstance(denoiser, row.mixin)), None)
        if family is None or not hasattr(pipe, "image_encoder"):
            raise UnsupportedModel(
                f"{model} takes no ip_adapters: diffusers has none for {type(pipe).__name__}; leave them out.",
                field=_FIELD,
            )
        with self._caches.opened(denoiser) as cache, self._encoders.opened(denoiser) as encoders, ExitStack() as stack:
            loaded = [
                cache.take(file.key, partial(_load, denoiser, family, file, offloading, model)) for file in active
            ]
            encoder = _encoder(encoders, active[0].files.parts["image_encoder"], offloading)
            for owner, name, value in _changes(denoiser, family, loaded, [file.adapter.spec.scale for file in active]):
                stack.enter_context(swapped(owner, name, value))
            stack.enter_context(swapped(pipe, "image_encoder", encoder.model))
            stack.enter_context(swapped(pipe, "feature_extractor", encoder.processor))
            images = _images([file.adapter for file in active], family)
            yield Effect(reports_of(files, "scale"), {"ip_adapter_image": images})


def _encoder(cache: AdapterCache[Encoder], folder: Path, offloading: Offloading) -> Encoder:
    if folder not in cache:
        cache.clear()  # before loading, since some are larger than the denoiser
    return cache.take(folder, partial(load_encoder, folder, offloading.dtype, offloading.device))


def _images(prompts: Sequence[ImagePrompt], family: _Family) -> Any:
    """Return the prompts' images as the call takes them: a list for each adapter, or the image of its only one."""
    lists = [[to_pil(image) for image in prompt.images] for prompt in prompts]
    return lists if family.several else lists[0][0]


def _changes(
    denoiser: Any, family: _Family, loaded: Sequence[Loaded], scales: list[float]
) -> Iterator[tuple[Any, str, Any]]:
    """Yield the denoiser's attributes to swap for the job: owner, attribute, and new value."""
    for path in loaded[0].processors:
        owner = denoiser.get_submodule(path.removesuffix(".processor"))
        yield owner, "processor", _joined([item.processors[path] for item in loaded], scales)
    if not family.several:
        yield denoiser, "image_proj", loaded[0].projection
        return
    text_projection = getattr(denoiser, "encoder_hid_proj", None)
    if text_projection is not None:  # Kolors projects its words there, and looks for them under this name
        yield denoiser, "text_encoder_hid_proj", text_projection
    yield denoiser, "encoder_hid_proj", MultiIPAdapterImageProjection([item.projection for item in loaded])
    yield denoiser.config, "encoder_hid_dim_type", "ip_image_proj"


def _joined(parts: Sequence[Any], scales: list[float]) -> nn.Module:
    """Return one processor of several adapters' layers. The layers are shared, the scales are the job's."""
    first: nn.Module = parts[0]
    if len(parts) == 1:
        first.scale = list(scales) if isinstance(first.scale, list) else scales[0]
        return first
    with torch.device("meta"):  # its own layers are replaced at once
        joined = type(first)(first.hidden_size, first.cross_attention_dim, (4,) * len(parts), list(scales))
    joined.to_k_ip = nn.ModuleList([part.to_k_ip[0] for part in parts])
    joined.to_v_ip = nn.ModuleList([part.to_v_ip[0] for part in parts])
    return joined


def _load(denoiser: Any, family: _Family, file: Prompted, offloading: Offloading, model: str) -> Loaded:
    state = _read(file)
    # All that the converters read of a denoiser, so that nothing of the real one is touched or moved.
    stand_in = SimpleNamespace(
        attn_processors=denoiser.attn_processors,
        config=denoiser.config,
        inner_dim=getattr(denoiser, "inner_dim", None),
        device=offloading.device,
        dtype=offloading.dtype,
    )
    mixin: Any = family.mixin
    try:
        converted = mixin._convert_ip_adapter_attn_to_diffusers(
            stand_in, family.attention(state), low_cpu_mem_usage=True
        )
        projection = mixin._convert_ip_adapter_image_proj_to_diffusers(
            stand_in, state["image_proj"], low_cpu_mem_usage=True
        )
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise _misfit(file, model, "its layers have other names or sizes") from None
    processors = {path: item for path, item in converted.items() if isinstance(item, family.processor)}
    layers = {name.partition(".")[0] for name in state["ip_adapter"] if name.endswith("to_k_ip.weight")}
    if projection is None or len(layers) != len(processors):
        raise _misfit(file, model, f"it has {len(layers)} layers of attention and the model has {len(processors)}")
    modules = [projection, *processors.values()]
    if any(tensor.is_meta for module in modules for tensor in module.parameters()):
        raise _misfit(file, model, "some of its tensors are missing")
    for module in modules:
        module.to(offloading.device, offloading.dtype).eval().requires_grad_(False)
    return Loaded(processors, projection)


def _read(file: Prompted) -> State:
    """Read the file's tensors as diffusers' converters take them; XLabs' names are converted."""
    try:
        tensors = unwrapped(load_file(file.files.root))
    except (SafetensorError, OSError) as error:
        raise CorruptFile(
            f"IP-Adapter {file.model} cannot be read ({type(error).__name__}); fetch it again.", field=_FIELD
        ) from None
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group in ("image_proj", "ip_adapter_proj_model"):
            state["image_proj"][rest] = tensor
        elif group in ("ip_adapter", "double_blocks"):
            rest = rest.replace("processor.ip_adapter_double_stream_k_proj", "to_k_ip")
            state["ip_adapter"][rest.replace("processor.ip_adapter_double_stream_v_proj", "to_v_ip")] = tensor
    return state


def _misfit(file: Prompted, model: str, why: str) -> IncompatibleAdapter:
    return IncompatibleAdapter(
        f"IP-Adapter {file.model} does not fit {model}: {why}; use one that was trained for this model's family.",
        field=_FIELD,
    )
