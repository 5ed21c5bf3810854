"""What a batch will cost, before it is sent."""

from dataclasses import dataclass
from decimal import Decimal

from image_client.batch import Again, is_wanted, may_have_run
from image_client.budget import Budget, Quote, default_model
from image_client.ledger import Ledger
from image_client.money import shown
from image_client.providers.table import provider_named
from image_client.request import ImageRequest


@dataclass(frozen=True, slots=True)
class Estimate:
    """`likely` and `most` are dollars, None where a price is unknown; `models` are those that are asked."""

    images: int
    provider: str
    models: tuple[str, ...]
    likely: Decimal | None
    most: Decimal | None
    quotes: tuple[tuple[Quote, ImageRequest], ...]

    def sentence(self) -> str:
        """Return the question: `Generate 500 images: $1.50 with replicate/flux-schnell. Continue?`"""
        model = self.models[0].rpartition("/")[2] if len(self.models) == 1 else f"{len(self.models)} models"
        name = f"{self.provider}/{model}" if self.models else self.provider
        images = "1 image" if self.images == 1 else f"{self.images:,} images"
        most = f" (at most {shown(self.most)})" if self.most != self.likely and self.most is not None else ""
        cost = shown(self.likely) if self.likely is not None else "at an unknown price"
        return f"Generate {images}: {cost}{most} with {name}. Continue?"


def estimate(ledger: Ledger, budget: Budget, again: Again, model: str | None) -> Estimate:
    """Return what the images cost that a run would send; what was taken already is paid for."""
    info, quotes, models = ledger.info, [], {}
    idempotent = provider_named(info.provider).idempotent
    for job in ledger.jobs:
        record = ledger[job.index]
        taken = record.state == "accepted" or may_have_run(record, again, idempotent=idempotent)
        if taken or not is_wanted(record, again):
            continue
        request = job.priced()
        request = request.model_copy(update={"model": request.model or model or default_model(info.provider)})
        if request.model:
            models[request.model] = True
        quotes.append((budget.quote(info.provider, request, info.fallback), request))
    return Estimate(
        len(quotes),
        info.provider,
        tuple(models),
        _sum([quote.likely for quote, _ in quotes]),
        _sum([quote.most for quote, _ in quotes]),
        tuple(quotes),
    )


def _sum(amounts: list[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None
