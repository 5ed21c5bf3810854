"""One job at every provider: what each takes for it, and how long each took here."""

from dataclasses import dataclass
from decimal import Decimal

from image_client.prices import GpuPrice, Price, PriceBook
from image_client.providers.table import PROVIDERS
from image_client.spending import SpendingLedger


@dataclass(frozen=True, slots=True)
class Offer:
    """What one image costs with a model at a provider; None where that is unknown. `seconds` were measured here."""

    provider: str
    model: str
    usd: Decimal | None
    seconds: float | None
    source: str
    read: str


def offers(
    book: PriceBook, ledger: SpendingLedger, size: tuple[int | None, int | None], gpu: str | None = None
) -> list[Offer]:
    """Return each provider's default model and all with a price or a time, cheapest first, those of unknown price last.

    Our own fleet (selfhosted, runpod, modal) has measured seconds; with `gpu` they are priced by the second at each
    platform that has that GPU, else by a price row of the fleet itself.
    """
    priced = {(price.provider, price.model): price for price in book.prices if price.model != "*"}
    measured = set(ledger.models())
    found = []
    known = {provider for provider, _ in (*priced, *measured)}
    defaults = [
        (row.name, row.default_model) for row in PROVIDERS.values() if row.default_model or row.name not in known
    ]
    for provider, model in dict.fromkeys((*priced, *measured, *defaults)):
        price = book.find(provider, model)
        seconds = ledger.seconds_per_image(provider, model or None)
        median = seconds[0] if seconds else None
        if provider in FLEET and gpu is not None and median is not None:
            found += [_rented(provider, model, row, median) for row in book.gpus_named(gpu)]
            continue
        found.append(_offer(provider, model, price, size, median))
    return sorted(found, key=lambda offer: (offer.usd is None, offer.usd or 0, offer.provider, offer.model))


FLEET = ("selfhosted", "runpod", "modal")


def _offer(
    provider: str, model: str, price: Price | None, size: tuple[int | None, int | None], seconds: float | None
) -> Offer:
    if price is None:
        return Offer(provider, model, None, seconds, "no price is known", "")
    return Offer(provider, model, price.cost(*size, seconds), seconds, price.source, price.read.isoformat())


def _rented(provider: str, model: str, row: GpuPrice, seconds: float) -> Offer:
    usd = row.usd_per_second * Decimal(repr(seconds))
    return Offer(f"{provider} on {row.platform}'s {row.gpu}", model, usd, seconds, row.source, row.read.isoformat())
