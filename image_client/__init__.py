"""One small client for everybody's image API: `from image_client import ImageClient`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_client.client import ImageClient as ImageClient
    from image_client.errors import ImageClientError as ImageClientError
    from image_client.image import Image as Image
    from image_client.job import ProviderJob as ProviderJob
    from image_client.options import Attempt as Attempt
    from image_client.options import ClientOptions as ClientOptions
    from image_client.request import ImageRequest as ImageRequest
    from image_client.sync import StableDiffusionClient as StableDiffusionClient
    from image_client.sync import SyncImageClient as SyncImageClient
    from image_client.webhooks import InvalidSignature as InvalidSignature
    from image_client.webhooks import verify_webhook as verify_webhook

# Where each public name lives: it is imported when it is first used, so that the package itself costs next to nothing.
_HOMES = {
    "Attempt": "options",
    "ClientOptions": "options",
    "Image": "image",
    "ImageClient": "client",
    "ImageClientError": "errors",
    "ImageRequest": "request",
    "InvalidSignature": "webhooks",
    "ProviderJob": "job",
    "StableDiffusionClient": "sync",
    "SyncImageClient": "sync",
    "verify_webhook": "webhooks",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
