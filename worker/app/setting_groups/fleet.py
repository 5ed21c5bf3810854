"""The operator's account at a platform that runs workers."""

from urllib.parse import urlsplit

from pydantic import SecretStr, field_validator

from worker.app.setting_groups.group import SettingsGroup


class FleetSettings(SettingsGroup):
    """What `deploy` asks with."""

    runpod_api_key: SecretStr | None = None
    runpod_api_url: str = "https://api.runpod.io/v2"

    @field_validator("runpod_api_url")
    @classmethod
    def _api_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
            raise ValueError("an address begins with https:// (or http://), as https://api.runpod.io/v2 does")
        return value.rstrip("/")
