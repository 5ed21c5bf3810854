"""Which models are served, where their files come from, and where they lie."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr

from worker.app.setting_groups.group import Paths, SettingsGroup, Words
from worker.core.precision import Precision
from worker.core.quality import Quality

PROJECT_DIR = Path(__file__).resolve().parents[3]
RUNPOD_VOLUME = Path("/runpod-volume")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


class ModelSettings(SettingsGroup):
    """The models, and the folders and hosts of their files."""

    # The models that are served
    models_yaml: Path = PROJECT_DIR / "models.yaml"
    recipes: Path | None = None
    custom_pipelines: Path | None = None
    default_model: str = "demo"
    model_id: str | None = None
    model_revision: str | None = None
    loras: Words = ()
    allow_unregistered_models: bool = False
    allowed_orgs: Words = ()
    denied_orgs: Words = ()
    allowed_hosts: Words = ()
    denied_hosts: Words = ()
    allow_pickles: bool = False
    trial_loads: Literal["unregistered", "all", "off"] = "unregistered"
    preload_models: Words = ()
    default_steps: int | None = Field(default=None, ge=1, le=1_000)
    default_guidance: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    use_lightning_lora: bool | None = None
    lightning_steps: Annotated[Literal[4, 8] | None, BeforeValidator(_whole)] = None
    default_quality: Quality = "exact"
    precision_mode: Precision | None = None
    allow_precision: bool = True

    # Folders and sources of files
    volume_dir: Path | None = None
    hf_hub_cache: Path | None = None
    hf_home: Path | None = None
    verify_cached_files: bool = True
    rehash_mb_per_second: float = Field(default=10.0, ge=0, le=100_000)
    cache_max_gb: float | None = Field(default=None, gt=0)
    models_lock: Path | None = None
    allowed_model_dirs: Paths = ()
    outputs_dir: Path = Path("outputs")
    hf_token: SecretStr | None = None
    hf_endpoint: str = "https://huggingface.co"
    civitai_token: SecretStr | None = None
    civitai_endpoint: str = "https://civitai.com"
    offline: bool = Field(default=False, validation_alias=AliasChoices("OFFLINE", "HF_HUB_OFFLINE"))

    # Models that others publish
    discovery: bool = True
    discovery_keys: Words = ()
    models_review: Path | None = None

    # Pairs of a split: the images that people choose between
    paired_images_mb: float = Field(default=0.0, ge=0, le=1_000_000)

    # What the operator knows of models
    compatibility_file: Path | None = None

    # Callers' links: images and model files
    allow_private_urls: bool = False

    @property
    def default_model_id(self) -> str:
        """The model of a request that names none."""
        return self.model_id or self.default_model

    @property
    def usage_dir(self) -> Path:
        """The folder of the usage log, a file for each worker and day."""
        return self.volume / "usage"

    @property
    def volume(self) -> Path:
        """The root that models and results may live under: the network volume, else a folder of the user's cache."""
        if self.volume_dir is not None:
            return self.volume_dir
        # RunPod also mounts a host's cached models there, read-only.
        if os.access(RUNPOD_VOLUME, os.W_OK):
            return RUNPOD_VOLUME
        return Path.home() / ".cache" / "universal-image-model-worker"

    @property
    def has_volume(self) -> bool:
        """True if the volume is one that was mounted or named, so that others find its files."""
        return self.volume_dir is not None or self.volume == RUNPOD_VOLUME

    @property
    def models_dir(self) -> Path:
        """The folder of models, in the layout of worker/store/cache.py."""
        return self.volume / "models"

    @property
    def hub_caches(self) -> tuple[Path, ...]:
        """Caches in the Hub's own layout that other programs may have filled, this worker's first version too."""
        folders = [
            self.hf_hub_cache,
            self.hf_home / "hub" if self.hf_home else None,
            self.volume / "huggingface" / "hub",
            Path.home() / ".cache" / "huggingface" / "hub",
        ]
        return tuple(dict.fromkeys(folder for folder in folders if folder is not None))

    @property
    def lock_file(self) -> Path | None:
        """The lockfile: models.lock beside the registry, another one that MODELS_LOCK names, or none with `off`."""
        if self.models_lock == Path("off"):
            return None
        return self.models_lock or self.models_yaml.with_name("models.lock")

    @property
    def compatibility_place(self) -> Path | None:
        """The matrix: as COMPATIBILITY_FILE names it, else compatibility.yaml beside the registry, if it is there."""
        beside = self.models_yaml.with_name("compatibility.yaml")
        return self.compatibility_file or (beside if beside.is_file() else None)

    @property
    def recipes_place(self) -> Path | None:
        """The folder of recipes, or a single one: as RECIPES names it, else `recipes` beside the registry, if there."""
        beside = self.models_yaml.with_name("recipes")
        return self.recipes or (beside if beside.is_dir() else None)

    def model_warnings(self) -> list[str]:
        """Return one sentence for each switch that lets more models or addresses in, or a token out."""
        sentences = []
        if self.allow_unregistered_models:
            allowed = ", ".join((*self.allowed_orgs, *self.allowed_hosts)) or "any organisation, any public host"
            sentences.append(
                f"ALLOW_UNREGISTERED_MODELS is on: callers may load models that models.yaml lacks ({allowed})."
            )
        if self.allow_pickles:
            sentences.append(
                "ALLOW_PICKLES is on: pickles of plain tensors are read, in a process of their own, and converted."
            )
        if self.custom_pipelines is not None:
            sentences.append(
                f"CUSTOM_PIPELINES is on: the Python files in {self.custom_pipelines} run in this process, with all of "
                "its rights."
            )
        if self.trial_loads == "off" and self.allow_unregistered_models:
            sentences.append("TRIAL_LOADS is off: the configs of any caller's model may hold the engine for minutes.")
        if not self.verify_cached_files:
            sentences.append("VERIFY_CACHED_FILES is off: files in other tools' caches are trusted by their size.")
        if self.paired_images_mb:
            sentences.append(
                f"PAIRED_IMAGES_MB is {self.paired_images_mb:g}: callers' images are kept on the volume, for admins to "
                "choose between, where a split is paired."
            )
        if self.allow_private_urls:
            sentences.append("ALLOW_PRIVATE_URLS is on: images and model files may be fetched from private addresses.")
        for name, endpoint, token in (
            ("HF", self.hf_endpoint, self.hf_token),
            ("CIVITAI", self.civitai_endpoint, self.civitai_token),
        ):
            if token is not None and not endpoint.startswith("https://"):
                sentences.append(
                    f"{name}_ENDPOINT does not speak https: {name}_TOKEN goes over the network unencrypted."
                )
        return sentences
