"""S3-compatible stores by their endpoints: the region that a signature must name, and the place of a bucket's name."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

Addressing = Literal["path", "virtual"]

# The first that matches tells the region. Other stores take any; what they call their only one is often this.
_DEFAULT = "us-east-1"
_REGION = r"([a-z]{2,}[a-z0-9-]*)"
_REGIONS = tuple(
    re.compile(rf"(?:^|\.){pattern}$")
    for pattern in (
        r"s3(?:-fips)?(?:\.dualstack)?[.-]((?:[a-z]+-)+\d)(?:\.vpce)?\.amazonaws\.com(?:\.cn)?",
        rf"s3\.{_REGION}\.(?:backblazeb2|wasabisys|idrivee2|synologyc2|impossibleapi)\.(?:com|net)",
        rf"s3\.{_REGION}\.scw\.cloud",
        rf"s3\.{_REGION}\.(?:io|perf)\.cloud\.ovh\.(?:net|us)",
        rf"s3\.(?:private\.|direct\.)?{_REGION}\.cloud-object-storage\.appdomain\.cloud",
        rf"{_REGION}\.(?:digitaloceanspaces|linodeobjects|vultrobjects|your-objectstorage)\.com",
        rf"s3api-{_REGION}\.runpod\.io",
        rf"sos-{_REGION}\.exo\.io",
        rf"oss-{_REGION}\.aliyuncs\.com",
        rf"cos\.{_REGION}\.myqcloud\.com",
        rf"s3\.{_REGION}\.[a-z0-9]+\.com",
    )
)
# These refuse a bucket's name in the path.
_VIRTUAL_ONLY = (".aliyuncs.com", ".myqcloud.com")


@dataclass(frozen=True, slots=True)
class S3Address:
    """Where a bucket is: the store's endpoint, without the bucket's name, and how its name is sent."""

    endpoint_url: str
    region: str
    addressing: Addressing


def s3_address(
    endpoint_url: str, bucket: str, *, region: str | None, usual_region: str | None, addressing: Addressing | None
) -> S3Address:
    """Return the address of `bucket`. An endpoint may hold its name, as its host's first part or as its path.

    The region is `region`, or the one that the endpoint names, or `usual_region`.
    """
    parts = urlsplit(endpoint_url)
    netloc, path, told = parts.netloc, parts.path.rstrip("/"), addressing
    if netloc.lower().startswith(f"{bucket.lower()}."):
        netloc, told = netloc[len(bucket) + 1 :], addressing or "virtual"
    if path == f"/{bucket}":
        path, told = "", told or "path"
    host = (parts.hostname or "") if netloc == parts.netloc else netloc.partition(":")[0].lower()
    return S3Address(
        urlunsplit((parts.scheme, netloc, path, "", "")),
        region or region_of(host) or usual_region or _DEFAULT,
        told or ("virtual" if host.endswith(_VIRTUAL_ONLY) else "path"),
    )


def region_of(host: str) -> str | None:
    """Return the region that a store's host names, or None."""
    return next((match[1] for pattern in _REGIONS if (match := pattern.search(host.lower()))), None)
