"""Another VAE for a job: whether its latents are the model's, before it is fetched."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.catalog.detectors.encoders import latent_channels
from worker.catalog.interface.adapters import INTERCHANGEABLE_VAES
from worker.core.adapter import Adapter, AdapterFiles, VaeSpec
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.job import Job
from worker.core.model import Detection, Kind, Outline, TensorIndex
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_kind
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.completing import SINGLE_FILES, completion
from worker.service.local.weights import examine_adapter

_FIELD = "vae"
_CONFIG, _INNER_CONFIG = "config.json", "vae/config.json"
_SCALE = 0.18215  # AutoencoderKL's own, where a config says nothing
_SCALED = frozenset({"AutoencoderKL", "AsymmetricAutoencoderKL"})  # the others take latents as they are


def provide_vae(vae: Adapter[VaeSpec], job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[Adapter[VaeSpec]]:
    """The files of the VAE that a job names. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
    source = fetcher.source(vae.spec.model, None, _FIELD)
    outline, seen = fetcher.look(source, _FIELD)
    ours = _own(job, fetcher)
    if "model_index.json" in outline.configs:
        source = source.model_copy(update={"only": ("vae",)})
    _check(_facts(outline.configs, outline.header), seen, ours, vae.spec)
    files = fetcher.fetch(source, _FIELD, emit, job.stop)
    if files.is_single_file:
        # A pickle shows only now what it is.
        examined = examine_adapter(files.root)
        _check(_facts({}, examined.header), examined.detection, ours, vae.spec)
    else:
        _check(_facts(_read_configs(files.root), None), None, ours, vae.spec)
    return AdapterFiles(
        vae, files, Detection(Kind.VAE, "safetensors" if files.is_single_file else "diffusers"), files.sha256
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a VAE: its class, its latents' channels, and what they are multiplied by."""

    name: str | None = None
    channels: int | None = None
    scale: float | None = None


def _facts(configs: Mapping[str, Mapping[str, object]], header: TensorIndex | None) -> _Facts:
    config = configs.get(_INNER_CONFIG) or configs.get(_CONFIG)
    if config is None:
        return _Facts(channels=latent_channels(header) if header else None)
    name, channels, scale = (config.get(key) for key in ("_class_name", "latent_channels", "scaling_factor"))
    return _Facts(
        name if isinstance(name, str) else None,
        channels if type(channels) is int else None,
        float(scale) if isinstance(scale, int | float) else _SCALE,
    )


def _read_configs(folder: Path) -> dict[str, dict[str, object]]:
    """The VAE's config in a folder on disk; nothing where there is none that can be read."""
    for name in (_INNER_CONFIG, _CONFIG):
        if (folder / name).is_file():
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError:
                return {}
            return {name: found} if isinstance(found, dict) else {}
    return {}


def _own(job: Job, fetcher: AdapterFetcher) -> _Facts:
    """What the model's own VAE is, from its configs; where a single file has none, from what completes it."""
    configs = fetcher.store.peek(job.call.spec.source, job.call.spec.variant).configs
    if _INNER_CONFIG in configs:
        return _facts(configs, None)
    if job.call.detection.kind in SINGLE_FILES:
        completing = completion(job.call)
        if completing.config is not None:
            return _facts(_read_configs(completing.config), None)
        if completing.base is not None:
            return _facts(_inner(fetcher.store.peek(fetcher.resolver.part_source(completing.base))), None)
    return _Facts()


def _inner(outline: Outline) -> dict[str, Mapping[str, object]]:
    return {name: config for name, config in outline.configs.items() if name == _INNER_CONFIG}


def _check(found: _Facts, seen: Detection | None, ours: _Facts, spec: VaeSpec) -> None:
    """Refuse what is no VAE, one of a class that cannot stand in, and one for other latents."""
    if seen is not None:
        check_kind(seen, spec)
    if found.name is not None and found.name not in INTERCHANGEABLE_VAES:
        raise UnsupportedModel(
            f"{_FIELD}: {spec.model} is a {found.name[:60]}, which cannot stand for this model's "
            f"{ours.name or 'AutoencoderKL'}; use one of {', '.join(sorted(INTERCHANGEABLE_VAES))}.",
            field=_FIELD,
        )
    if None not in (found.channels, ours.channels) and found.channels != ours.channels:
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} decodes latents of {found.channels} channels and this model's have "
            f"{ours.channels}; use a VAE of its family.",
            field=_FIELD,
            details={"vae": found.channels, "model": ours.channels},
        )
    scaled = found.name in _SCALED and ours.name in _SCALED and found.scale is not None and ours.scale is not None
    if scaled and abs(float(found.scale or 0) - float(ours.scale or 0)) > 1e-6:
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} was trained with latents times {found.scale:g} and this model's are times "
            f"{ours.scale:g}; use a VAE of its family.",
            field=_FIELD,
            details={"vae": found.scale, "model": ours.scale},
        )
