"""The HTTP server: where it listens, what it takes, whom it answers."""

from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from worker.app.setting_groups.group import SettingsGroup, Words


class ServerSettings(SettingsGroup):
    """Ports and processes, limits of a connection, addresses, and the API keys of its callers."""

    # The HTTP server
    standalone_mode: bool = False
    gateway_mode: bool = False
    fleet_file: Path | None = None
    api_host: str = "0.0.0.0"  # noqa: S104 -- a container's port is published by whoever runs it
    api_port: int = Field(default=8000, ge=1, le=65_535)
    api_workers: int = Field(default=1, ge=1, le=64)
    port: int | None = Field(default=None, ge=1, le=65_535)
    port_health: int | None = Field(default=None, ge=1, le=65_535)
    job_retention_seconds: float = Field(default=1_800.0, ge=0, le=604_800)
    job_retention_mb: float = Field(default=512.0, gt=0, le=1_000_000)
    webhook_secret: SecretStr | None = None
    max_body_mb: float = Field(default=120.0, gt=0.01, le=10_000)
    max_message_mb: float = Field(default=32.0, gt=0.01, le=10_000)
    max_incoming_mb: float = Field(default=512.0, gt=0.01, le=100_000)
    max_connections: int = Field(default=4_096, ge=16, le=1_000_000)
    max_connections_per_address: int = Field(default=2_048, ge=1, le=1_000_000)
    max_sockets_per_caller: int = Field(default=128, ge=1, le=1_000_000)
    cors_origins: Words = ()
    api_hostnames: Words = ()
    edit_model: str | None = None
    public_url: str | None = None
    web_page: bool = True

    # The API keys of its callers: lists of keys, or of `name:sha256` lines as `python -m worker keys new` prints them
    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None
    admin_keys: SecretStr | None = None

    # Callers without keys, each known by the address
    rate_limit_per_address: int = Field(default=0, ge=0, le=1_000_000)
    trusted_proxies: Words = ()

    @field_validator("public_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in value:
            raise ValueError("name the address that callers use, as https://images.example.com or with a prefix behind")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ip_network(text, strict=False)
            except ValueError:
                raise ValueError("name addresses or networks, as 10.0.0.0/8 or 192.168.1.7, with commas") from None
        return value

    @model_validator(mode="after")
    def _one_gateway(self) -> "ServerSettings":
        if self.gateway_mode and self.api_workers > 1:
            raise ValueError("GATEWAY_MODE is one process, and API_WORKERS asks for more; leave that at 1")
        return self

    @property
    def listening_ports(self) -> tuple[int, ...]:
        """The HTTP server's ports: the platform's if that is set, and the one of health checks."""
        main = self.port or self.api_port
        return tuple(dict.fromkeys((main, self.port_health or main)))

    @property
    def has_keys(self) -> bool:
        """True if the HTTP server asks for an API key."""
        return self.api_keys is not None or self.api_keys_file is not None

    def open_door_warnings(self) -> list[str]:
        """Return one sentence for each address, name or origin that lets anybody in."""
        sentences = []
        if not self.has_keys and not _is_loopback(self.api_host):
            sentences.append(
                f"API_KEYS is not set and API_HOST is {self.api_host}: whoever reaches this port may use the worker. "
                "Set API_KEYS or API_KEYS_FILE, or API_HOST=127.0.0.1."
            )
        if "*" in self.api_hostnames and not self.has_keys:
            sentences.append(
                "API_HOSTNAMES is * and API_KEYS is not set: any web page may use this worker through its readers' "
                "browsers, by a name that it gives this worker's address."
            )
        if "*" in self.cors_origins:
            sentences.append("CORS_ORIGINS is *: any web page may use this worker through its readers' browsers.")
        if self.rate_limit_per_address and self.has_keys:
            sentences.append("RATE_LIMIT_PER_ADDRESS is of callers without keys, and API_KEYS is set: nobody is one.")
        if self.trusted_proxies and not self.rate_limit_per_address:
            sentences.append("TRUSTED_PROXIES is for RATE_LIMIT_PER_ADDRESS, which is not set: no address is counted.")
        if "0.0.0.0/0" in self.trusted_proxies or "::/0" in self.trusted_proxies:
            sentences.append("TRUSTED_PROXIES has every address: any caller may say that they come from another one.")
        return sentences


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
