"""How a client behaves: limits of time and size, retries, and who is told."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from image_client.job import ProviderJob
from image_client.request import ImageRequest

Fit = Literal["strict", "nearest"]
Outcome = Literal["image", "accepted", "rate_limited", "unavailable", "refused", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer of a provider, or none; `wait` is the seconds until the next attempt, None if there is none."""

    request_id: str
    provider: str
    number: int
    outcome: Outcome
    status: int | None
    wait: float | None


# What one image costs in US dollars, None where nobody knows: (provider, the request as it is sent, seconds it took).
Price = Callable[[str, ImageRequest, float], Decimal | None]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """`fit` is `strict` (refuse what a provider cannot do) or `nearest` (adapt, and say how in `Image.adapted`).

    Seconds: `first_byte` from the end of a request to the first byte of its answer, None for the provider's own (10,
    and more for those that answer only with the finished image); `deadline` over all, waiting and retries included.
    `attempts` is how often a request that cannot have run is sent in all. `concurrency` is the most requests in flight.
    `on_attempt` hears of each answer, for instance to adapt to a provider's limits; `on_accepted` hears of a job as
    soon as the provider has taken it, for a ledger to write down. Both are called on the event loop and must be quick.
    """

    fit: Fit = "strict"
    first_byte: float | None = None
    deadline: float = 600.0
    attempts: int = 6
    concurrency: int = 100
    max_image_mb: float = 64.0
    price: Price | None = None
    on_attempt: Callable[[Attempt], None] | None = None
    on_accepted: Callable[[ProviderJob], None] | None = None
