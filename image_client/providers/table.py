"""The one table of providers: a provider is one row here and one file beside it."""

from image_client.errors import InvalidRequest
from image_client.providers.fal import FAL
from image_client.providers.huggingface import HUGGINGFACE, MODAL
from image_client.providers.mock import MOCK
from image_client.providers.openai import OPENAI
from image_client.providers.provider import Provider
from image_client.providers.replicate import REPLICATE
from image_client.providers.runpod_queue import RUNPOD_ENDPOINT, SELFHOSTED
from image_client.providers.stability import STABILITY

PROVIDERS: dict[str, Provider] = {
    row.name: row
    for row in (
        SELFHOSTED,
        RUNPOD_ENDPOINT,
        MODAL,
        REPLICATE,
        STABILITY,
        OPENAI,
        HUGGINGFACE,
        FAL,
        MOCK,
    )
}


def provider_named(name: str) -> Provider:
    """Return a row of the table; raises InvalidRequest."""
    if name not in PROVIDERS:
        raise InvalidRequest(f"provider must be one of {', '.join(PROVIDERS)}; {name} was given.")
    return PROVIDERS[name]
