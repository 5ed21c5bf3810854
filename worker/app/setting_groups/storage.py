"""S3-compatible storage for results that are too large, or asked for with `delivery: s3`."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from worker.app.setting_groups.group import SettingsGroup


class StorageSettings(SettingsGroup):
    """One bucket: its address, name and keys."""

    bucket_endpoint_url: str | None = None
    bucket_name: str | None = None
    bucket_region: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    aws_region: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    bucket_addressing: Literal["auto", "path", "virtual"] = "auto"
    bucket_access_key_id: SecretStr | None = None
    bucket_secret_access_key: SecretStr | None = None
    bucket_url_expires_s: int = Field(default=604_800, ge=60, le=604_800)

    @field_validator("bucket_endpoint_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError(
                "an endpoint begins with https:// (or http://), as https://s3.eu-west-1.amazonaws.com does"
            )
        return value

    def storage_warnings(self) -> list[str]:
        """Return a sentence if only some of the bucket's variables are set."""
        partial = [self.bucket_endpoint_url, self.bucket_name, self.bucket_access_key_id, self.bucket_secret_access_key]
        if not any(partial) or all(partial):
            return []
        return [
            "S3 is off: set all of BUCKET_ENDPOINT_URL, BUCKET_NAME, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY."
        ]
