"""Another VAE for the length of one job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from worker.core.adapter import Adapter, AdapterFiles, VaeSpec
from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile, IncompatibleAdapter, UnsupportedModel
from worker.core.json_text import parse_bounded
from worker.engine.adapters.adapter_cache import AdapterCaches, denoiser_of
from worker.engine.adapters.host import Effect, Host, reports_of
from worker.engine.adapters.offloading import Offloading
from worker.engine.adapters.swapping import swapped
from worker.engine.adapters.tiny_vae import is_tiny, load_tiny
from worker.engine.components import Component, load_component, read_index
from worker.engine.devices import is_out_of_memory
from worker.engine.single_file import load_part

_FIELD = "vae"
# Classes that decode the latents of AutoencoderKL; a VAE of another class is replaced by one of its own class.
_TINY = "AutoencoderTiny"
_KL_LIKE = frozenset({"AutoencoderKL", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", _TINY})


class VaeCache:
    """A cache of jobs' VAEs: the last `capacity` for each resident pipeline. Engine's thread only."""

    def __init__(self, capacity: int) -> None:
        self._caches: AdapterCaches[Any] = AdapterCaches(capacity)

    @contextmanager
    def applied(self, host: Host, files: Sequence[AdapterFiles[Adapter[VaeSpec]]]) -> Iterator[Effect]:
        """Let the pipeline encode and decode with the one VAE in `files`.

        Raises IncompatibleAdapter where its latents differ from the model's, CorruptFile for a damaged one.
        """
        (file,) = files
        pipe, path = host.pipe, file.files.root
        own, denoiser = getattr(pipe, "vae", None), denoiser_of(pipe)
        if own is None or denoiser is None:
            raise UnsupportedModel(f"{type(pipe).__name__} has no VAE; leave vae out.", field=_FIELD)
        with self._caches.opened(denoiser) as cache:
            vae = cache.take(path, partial(_fitting, path, own, host.resident.plan, host.offloading, file.model))
            with swapped(pipe, "vae", vae):
                yield Effect(reports_of(files))


def _fitting(path: Path, own: Any, plan: LoadPlan, offloading: Offloading, name: str) -> Any:
    """Load the VAE at `path`. Raises IncompatibleAdapter where it cannot stand for the model's own."""
    vae = _load(path, own, plan, offloading, name)
    _check_latents(vae, own, name)
    return vae.to(offloading.device).eval().requires_grad_(False)


def _load(path: Path, own: Any, plan: LoadPlan, offloading: Offloading, name: str) -> Any:
    """Load a VAE from its own folder, a pipeline's folder that has one, or a weight file."""
    try:
        if path.is_dir():
            folder = path / "vae" if (path / "vae").is_dir() else path
            component = Component("vae", "diffusers", _class_name(folder, name))
            if component.class_name not in _replacing(own):
                raise UnsupportedModel(
                    f"vae: {name} is a {component.class_name[:60]}, which cannot stand for this model's "
                    f"{type(own).__name__}; use one of {', '.join(sorted(_replacing(own)))}.",
                    field=_FIELD,
                )
            return load_component(component, folder, offloading.dtype)
        if is_tiny(path):
            return load_tiny(path, own).to(offloading.dtype)
        config = plan.config or (plan.root if plan.root.is_dir() else plan.base) or plan.root
        return load_part(read_index(config), "vae", path, config, offloading.dtype)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise CorruptFile(
            f"vae: {name} cannot be read ({type(error).__name__}); fetch it again or name another.", field=_FIELD
        ) from None


def _replacing(own: Any) -> frozenset[str]:
    """Return the classes that can stand for the model's own VAE."""
    cls = type(own).__name__
    return _KL_LIKE if cls in _KL_LIKE else frozenset({cls})


def _class_name(folder: Path, name: str) -> str:
    try:
        return str(parse_bounded((folder / "config.json").read_bytes()).get("_class_name"))
    except (OSError, ValueError, AttributeError):
        raise CorruptFile(f"vae: {name} has no readable config.json; fetch it again.", field=_FIELD) from None


def _check_latents(vae: Any, own: Any, name: str) -> None:
    """Refuse latents of another shape: they would fail in the middle of a job, or come out at another size."""
    latents, own_latents = _latents(vae), _latents(own)
    if latents == own_latents and vae.config.get("out_channels", 3) == own.config.get("out_channels", 3):
        return
    raise IncompatibleAdapter(
        f"vae: {name} decodes latents of {latents[0]} channels at 1/{latents[1]} of the size, and this model's have "
        f"{own_latents[0]} at 1/{own_latents[1]}; use a VAE of its family.",
        field=_FIELD,
    )


def _latents(vae: Any) -> tuple[int, int]:
    """Return the latents' channels, and the factor by which they are smaller than the image."""
    levels = vae.config.get("encoder_block_out_channels") or vae.config.get("block_out_channels") or ()
    return int(vae.config.latent_channels), 2 ** (len(levels) - 1)
