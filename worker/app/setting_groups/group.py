"""What all groups of settings share: how they are read, and the types of their lists."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict


def _comma_separated(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
"""Any number of words, with commas between them."""
Paths = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_comma_separated)]
"""Any number of folders, with commas between them."""


class SettingsGroup(BaseSettings):
    """Names are the environment variables in lower case. Sizes, seconds and counts say their unit in the name."""

    # Built when it is read: of the groups that are one object in the end only that one.
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False, defer_build=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the arguments and the environment, where `.env` is by then: another source takes time for nothing."""
        return init_settings, env_settings
