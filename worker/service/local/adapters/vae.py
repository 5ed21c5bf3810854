"""Another VAE for a job: checked to have the model's latents before it is fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.catalog.detectors.encoders import TINY_ENCODER, latent_channels
from worker.catalog.interface.adapters import INTERCHANGEABLE_VAES
from worker.core.adapter import Adapter, AdapterFiles, VaeSpec
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.job import Job
from worker.core.json_text import parse_bounded
from worker.core.model import Detection, Kind, Outline, TensorIndex
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import Inspected
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.completing import SINGLE_FILES, completion
from worker.service.local.weights import examine_adapter

_FIELD = "vae"
_CONFIG, _INNER_CONFIG = "config.json", "vae/config.json"
_SCALE = 0.18215  # AutoencoderKL's own, where a config has none
_SCALED = frozenset({"AutoencoderKL", "AsymmetricAutoencoderKL"})  # the others take latents as they are


def provide_vae(vae: Adapter[VaeSpec], job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[Adapter[VaeSpec]]:
    """Fetch the VAE that a job names. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
    source = fetcher.source(vae.spec.model, None, _FIELD)
    outline, peeked = fetcher.look(source, _FIELD)
    model_vae = _own_vae(job, fetcher)
    if "model_index.json" in outline.configs:
        source = source.model_copy(update={"only": ("vae",)})
    if peeked is not None:
        _check_kind(Inspected(vae.spec, peeked))
    _check(_facts(outline.configs, outline.header), model_vae, vae.spec)
    files = fetcher.fetch(source, _FIELD, emit, job.stop)
    if files.is_single_file:
        # A pickle shows only now what it is.
        examined = examine_adapter(files.root)
        _check_kind(Inspected(vae.spec, examined.detection))
        _check(_facts({}, examined.header), model_vae, vae.spec)
    else:
        _check(_facts(_read_configs(files.root), None), model_vae, vae.spec)
    return AdapterFiles(
        vae, files, Detection(Kind.VAE, "safetensors" if files.is_single_file else "diffusers"), files.sha256
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """The facts of a VAE: its class, its latents' channels, and the factor that scales them."""

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
    """Read the VAE's config in a folder on disk; {} if there is none that can be read."""
    for name in (_INNER_CONFIG, _CONFIG):
        if (folder / name).is_file():
            try:
                config = parse_bounded((folder / name).read_bytes())
            except ValueError:
                return {}
            return {name: config} if isinstance(config, dict) else {}
    return {}


def _own_vae(job: Job, fetcher: AdapterFetcher) -> _Facts:
    """Return the facts of the model's own VAE, from its configs; for a single file from its completion."""
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


def _check(facts: _Facts, model_vae: _Facts, spec: VaeSpec) -> None:
    """Refuse a VAE of a class that cannot stand in, or for other latents."""
    if facts.name is not None and facts.name not in INTERCHANGEABLE_VAES:
        raise UnsupportedModel(
            f"{_FIELD}: {spec.model} is a {facts.name[:60]}, which cannot stand for this model's "
            f"{model_vae.name or 'AutoencoderKL'}; use one of {', '.join(sorted(INTERCHANGEABLE_VAES))}.",
            field=_FIELD,
        )
    if None not in (facts.channels, model_vae.channels) and facts.channels != model_vae.channels:
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} decodes latents of {facts.channels} channels and this model's have "
            f"{model_vae.channels}; use a VAE of its family.",
            field=_FIELD,
            details={"vae": facts.channels, "model": model_vae.channels},
        )
    scaled = (
        facts.name in _SCALED and model_vae.name in _SCALED and facts.scale is not None and model_vae.scale is not None
    )
    if scaled and abs(float(facts.scale or 0) - float(model_vae.scale or 0)) > 1e-6:
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} was trained with latents times {facts.scale:g} and this model's are times "
            f"{model_vae.scale:g}; use a VAE of its family.",
            field=_FIELD,
            details={"vae": facts.scale, "model": model_vae.scale},
        )


def _check_kind(inspected: Inspected[VaeSpec]) -> None:
    """Refuse a file that is no VAE, or one that decodes nothing."""
    inspected.check_kind()
    if inspected.detection.variant == TINY_ENCODER:
        raise UnsupportedModel(
            f"{_FIELD}: {inspected.spec.model} is the encoder of a tiny autoencoder alone, which decodes nothing; "
            "name the decoder, or one with both such as the repository madebyollin/taesd (taesdxl, taesd3 or taef1 for "
            "other families).",
            field=_FIELD,
        )
