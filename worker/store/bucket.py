"""Results in an S3-compatible bucket: put, and a presigned URL back."""

import re
import threading
from dataclasses import dataclass
from typing import Any

from worker.core.errors import SourceUnavailable


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """Where results go. Keys are secrets and never shown."""

    endpoint_url: str
    name: str
    access_key_id: str
    secret_access_key: str
    url_expires_s: int

    def __repr__(self) -> str:
        """The bucket without its keys."""
        return f"BucketConfig({self.name!r})"


class Bucket:
    """Uploads bytes and answers presigned URLs. Blocking; safe to use from several threads."""

    def __init__(self, config: BucketConfig) -> None:
        self._config = config
        self._client: Any = None
        self._lock = threading.Lock()  # boto3 makes clients in one thread at a time only

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Store `body` under `key` and return a URL that reads it. Raises SourceUnavailable."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = self._connect()
            client.put_object(Bucket=self._config.name, Key=key, Body=body, ContentType=content_type)
            url: str = client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self._config.name, "Key": key},
                ExpiresIn=self._config.url_expires_s,
            )
            return url
        except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: an endpoint that is no URL
            reason = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
            raise SourceUnavailable(
                f"The result bucket refused the upload{f' ({reason})' if reason else ''}; check the BUCKET_ settings."
            ) from None

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._config.endpoint_url,
            aws_access_key_id=self._config.access_key_id,
            aws_secret_access_key=self._config.secret_access_key,
            region_name=_region(self._config.endpoint_url),
            # Stores other than AWS's own refuse the checksum header that boto3 adds by default.
            config=Config(
                signature_version="s3v4",  # or presigned URLs get the old one, which some stores no longer take
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
                retries={"max_attempts": 3, "mode": "standard"},
                connect_timeout=5,
                read_timeout=30,
            ),
        )


def _region(endpoint_url: str) -> str:
    """The region that a signature must name: the endpoint's own, else the one every other store takes."""
    match = re.search(
        r"\bs3[.-](?:dualstack\.)?([a-z0-9-]+)\.amazonaws\.com|\bs3\.([a-z0-9-]+)\.[a-z0-9]+\.com"
        r"|\b([a-z]{3}\d)\.digitaloceanspaces\.com|s3api-([a-z0-9-]+)\.runpod\.io",
        endpoint_url.lower(),
    )
    return next(filter(None, match.groups()), "us-east-1") if match else "us-east-1"
