"""One image within the budget: reserved, sent, settled. Nothing is sent that could not be paid."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from image_client.budget import Budget, Quote
from image_client.client import ImageClient
from image_client.errors import Accepted, ContentFiltered, GenerationFailed, ImageClientError, NotSent, ResultLost
from image_client.image import Image
from image_client.request import ImageRequest


async def pay(
    budget: Budget, client: ImageClient, request: ImageRequest, request_id: str, fallback: Sequence[str] = ()
) -> Image:
    """Return the image of a request with n=1; raises BudgetExceeded or PriceUnknown before anything is sent."""
    provider = client.provider
    request = request.model_copy(update={"model": request.model or client.model})
    quote = await asyncio.to_thread(budget.quote, provider, request, fallback)
    await asyncio.to_thread(budget.reserve, request_id, provider, request, quote)
    began = time.monotonic()
    try:
        image = await client.send(request, request_id=request_id)
    except ImageClientError as error:
        await asyncio.to_thread(account, budget, request_id, error, quote, time.monotonic() - began)
        raise
    cost = budget.cost(image.cost, quote, image.seconds)
    await asyncio.to_thread(budget.settle, request_id, cost, image.seconds)
    return replace(image, cost=cost)


def account(budget: Budget, key: str, error: ImageClientError, quote: Quote, seconds: float) -> None:
    """Settle what did not become an image: free where it cannot have run, charged or in doubt where it may have.

    A job that failed is free where images are sold, and in doubt where seconds are.
    """
    if isinstance(error, NotSent):
        budget.ledger.release(key)
    elif isinstance(error, ContentFiltered | ResultLost):
        budget.settle(key, budget.cost(None, quote, seconds), seconds)
    elif isinstance(error, GenerationFailed) and quote.price is not None and quote.price.unit != "second":
        budget.ledger.release(key)
    else:
        budget.ledger.doubt(key)


def outcome_is_open(error: ImageClientError) -> bool:
    """Whether the job may still run, so that asking for it later may bring its image."""
    return isinstance(error, Accepted) and not isinstance(error, GenerationFailed | ResultLost)
