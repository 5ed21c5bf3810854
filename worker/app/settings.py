"""Every switch of the worker: the only reader of the environment, read once, then frozen."""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, JsonValue, SecretStr, ValidationError, model_validator

from worker.app.environment import PRESETS, EnvironmentFileError, load_env_file, misspelt
from worker.app.setting_groups.fleet import FleetSettings
from worker.app.setting_groups.jobs import JobSettings
from worker.app.setting_groups.models import PROJECT_DIR, RUNPOD_VOLUME, ModelSettings
from worker.app.setting_groups.server import ServerSettings
from worker.app.setting_groups.storage import StorageSettings

__all__ = ["PROJECT_DIR", "RUNPOD_VOLUME", "Settings", "SettingsError"]


class SettingsError(ValueError):
    """A value of an environment variable that cannot be used; the message names it, the limit and the fix."""


class Settings(StorageSettings, ServerSettings, JobSettings, ModelSettings, FleetSettings):
    """All groups of settings as one object. A new variable belongs into its group."""

    # Defaults of other settings, all at once
    preset: Literal["firered"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: dict[str, object]) -> dict[str, object]:
        """Return `values` on top of what their preset says. An unknown preset is refused where it is read."""
        return {**PRESETS.get(str(values.get("preset")), {}), **values}

    @property
    def secrets(self) -> list[str]:
        """All secret values of the settings."""
        values = [getattr(self, name) for name in type(self).model_fields]
        return [value.get_secret_value() for value in values if isinstance(value, SecretStr)]

    def shown(self) -> dict[str, JsonValue]:
        """Return the settings by their variables, as an operator may read them: of a secret only whether it is set."""
        values = self.model_dump(mode="json")
        return {name.upper(): _shown(getattr(self, name), value) for name, value in sorted(values.items())}

    def without_response_limit(self) -> "Settings":
        """Return these settings for files as results: no platform limits an answer."""
        return self.model_copy(update={"max_response_mb": 1e6})

    def warnings(self) -> list[str]:
        """Return one sentence for each switch that loosens a safe default; printed at start."""
        sentences = self.model_warnings()
        if len(self.preload_models) >= self.max_resident_models and self.preload_models:
            sentences.append(
                f"PRELOAD_MODELS and the default model are more than MAX_RESIDENT_MODELS ({self.max_resident_models}): "
                "the first ones are evicted again before a job comes."
            )
        sentences += self.storage_warnings()
        sentences += self.native_code_warnings()
        sentences += self.training_warnings()
        sentences += self.alert_warnings()
        sentences += misspelt(os.environ, known_variables())
        fleet = [name for name in tier_overrides() if name.endswith(("_MAX_CONTAINERS", "_SCALEDOWN"))]
        if fleet:
            sentences.append(
                f"{' and '.join(sorted(fleet))} set how a platform scales, and this is one worker, which does not read "
                "them; set them where containers are started and stopped."
            )
        return sentences

    def server_warnings(self) -> list[str]:
        """Return the same for the HTTP server alone."""
        sentences = self.open_door_warnings()
        if (self.rate_limit_per_minute or self.quota_pixel_steps_per_day) and not self.has_keys:
            sentences.append(
                "RATE_LIMIT_PER_MINUTE and QUOTA_PIXEL_STEPS_PER_DAY are of API keys: without API_KEYS or "
                "API_KEYS_FILE nobody is held to them. RATE_LIMIT_PER_ADDRESS is of addresses."
            )
        return sentences


def _shown(value: object, as_json: JsonValue) -> JsonValue:
    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else ""
    text = str(value)
    parts = urlsplit(text) if isinstance(value, str) and "://" in text else None
    if parts and (parts.password or parts.query):  # a password in an address is one too
        return f"{parts.scheme}://{parts.hostname}"
    return as_json


def read_settings() -> Settings:
    """Read the environment and `.env` once. Raises SettingsError naming the variable."""
    try:
        load_env_file(Path(".env"), os.environ)
        return Settings()
    except EnvironmentFileError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        raise SettingsError(
            f"{name}: {first['msg'].removeprefix('Value error, ')}; {first.get('input')!r} was set."
        ) from None


def process_environment() -> MutableMapping[str, str]:
    """Return the environment that libraries read: which GPUs they see stands there."""
    return os.environ


def known_variables() -> set[str]:
    """Return the names of all environment variables that are settings."""
    names = {name.upper() for name in Settings.model_fields}
    aliases = [field.validation_alias for field in Settings.model_fields.values()]
    return names.union(*(map(str, alias.choices) for alias in aliases if isinstance(alias, AliasChoices)))


def tier_overrides() -> dict[str, str]:
    """Return the DIFFUSERS_<TIER>_… variables, which the registry reads by name."""
    return {name: value for name, value in os.environ.items() if name.startswith("DIFFUSERS_")}


# What only the HTTP server of a gateway needs: its callers' keys are not for the machines behind it, nor its alerts.
_OF_THE_DOOR = frozenset({"API_KEYS", "API_KEYS_FILE", "ADMIN_KEYS", "WEBHOOK_SECRET", "ALERTS", "SMTP_URL"})


def handed_on(*, door: bool) -> dict[str, str]:
    """Return the settings of this environment, for a container that a platform starts with the same ones.

    `door` is True for one that callers reach. Only that one needs their keys.
    """
    names = known_variables() - (frozenset() if door else _OF_THE_DOOR)
    chosen = {name: value for name, value in os.environ.items() if name in names}
    # How the tier scales is for the platform; how long a job may take is for the worker, too.
    return chosen | {name: value for name, value in tier_overrides().items() if door or name.endswith("_TIMEOUT")}


def secret_named(variable: str) -> str | None:
    """Return the value of a variable that one of the operator's files names; None where it is not set."""
    return os.environ.get(variable) or None


def forbid_unsafe_loading() -> None:
    """Take away the variable with which torch would read any pickle, whatever its caller asked for."""
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


def quiet_sdk() -> None:
    """Set RunPod's log level before its SDK reads it: the default is DEBUG, with base64 in every other line."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
