"""A budget: what a call may cost at most is reserved before it, and what it cost is settled after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

from image_client.alerts import Alerts
from image_client.prices import Price, PriceBook, PriceUnknown
from image_client.providers.table import PROVIDERS
from image_client.request import ImageRequest
from image_client.spending import BudgetExceeded, Call, Limit, SpendingLedger

DEFAULT_MONTH = Decimal(60)  # dollars: alerts at 30 and 48, stop at 60
THRESHOLDS = (50, 80, 100)  # percent


@dataclass(frozen=True, slots=True)
class Limits:
    """Dollars of a session and of a calendar month (UTC), None for no limit; alerts at `thresholds` percent of each."""

    session: Decimal | None = None
    month: Decimal | None = DEFAULT_MONTH
    thresholds: Sequence[int] = THRESHOLDS


@dataclass(frozen=True, slots=True)
class Quote:
    """What one image will cost: about `likely` and not more than `most` dollars, both None where nobody knows."""

    likely: Decimal | None
    most: Decimal | None
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one session on a ledger that other processes may share."""

    ledger: SpendingLedger
    prices: PriceBook
    session: str
    limits: Limits = field(default_factory=Limits)
    alerts: Alerts = field(default_factory=Alerts)
    allow_unknown_price: bool = False
    seconds_per_image: float | None = None  # of providers that bill by the second, until one was measured here
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def quote(self, provider: str, request: ImageRequest, fallback: Sequence[str] = ()) -> Quote:
        """Return what one image of `request` costs at `provider`, and at most there or at one that stands in for it.

        A provider that stands in draws with its own default model.
        """
        quotes = [self._quote(provider, request.model, request)]
        quotes += [self._quote(name, None, request) for name in fallback]
        mosts = [quote.most for quote in quotes if quote.most is not None]
        return replace(quotes[0], most=max(mosts) if len(mosts) == len(quotes) else None)

    def _quote(self, provider: str, model: str | None, request: ImageRequest) -> Quote:
        model = model or default_model(provider)
        price = self.prices.find(provider, model)
        if price is None:
            return Quote(None, None)
        likely, most = self.ledger.seconds_per_image(provider, model) or (self.seconds_per_image,) * 2
        size = request.width, request.height
        return Quote(price.cost(*size, likely), price.cost(*size, most), price)

    def check(self, provider: str, request: ImageRequest, quote: Quote) -> None:
        """Raise PriceUnknown where no budget can hold and none need not."""
        if quote.most is not None or self.allow_unknown_price:
            return
        named = f"{provider}/{request.model or default_model(provider) or 'its own model'}"
        if quote.price is not None:
            raise PriceUnknown(
                f"{named} is billed by the second and none of its images was timed here: say seconds_per_image first.",
                provider=provider,
            )
        raise PriceUnknown(
            f"The price of {named} is unknown, so no budget can hold: add a price first.", provider=provider
        )

    def reserve(self, key: str, provider: str, request: ImageRequest, quote: Quote) -> None:
        """Set aside what an image may cost; raises PriceUnknown or BudgetExceeded, and then nothing may be sent."""
        self.check(provider, request, quote)
        now = self.now()
        call = Call(
            key=key,
            session=self.session,
            month=f"{now:%Y-%m}",
            provider=provider,
            model=request.model or default_model(provider),
            images=1,
            state="reserved",
            dollars=quote.most,
            seconds=None,
            began=now.isoformat(timespec="milliseconds"),
            ended=None,
        )
        limits = self._limits(call.month)
        try:
            crossings = self.ledger.reserve(call, limits, self.limits.thresholds)
        except BudgetExceeded:
            for limit in limits:
                committed = self.ledger.committed(limit.scope, limit.name)
                over = committed + (quote.most or 0) > limit.dollars
                if over and (crossing := self.ledger.exhausted(limit)):
                    self.alerts.tell(crossing)
            raise
        for crossing in crossings:
            self.alerts.tell(crossing)

    def left(self) -> Decimal | None:
        """Return the dollars that may still be spent now, None without a limit."""
        limits = self._limits(f"{self.now():%Y-%m}")
        return min((limit.dollars - self.ledger.committed(limit.scope, limit.name) for limit in limits), default=None)

    def cost(self, told: Decimal | None, quote: Quote, seconds: float | None) -> Decimal | None:
        """Return what an image cost: what its provider told, else its price; None where nobody knows."""
        if told is not None or quote.price is None:
            return told
        return quote.price.cost(None, None, seconds) if quote.price.unit == "second" else quote.likely

    def settle(self, key: str, cost: Decimal | None, seconds: float | None) -> None:
        """Write down what an image cost in the end; its reservation ends."""
        self.ledger.settle(key, cost, seconds)

    def _limits(self, month: str) -> list[Limit]:
        limits = []
        if self.limits.session is not None:
            limits.append(Limit("session", self.session, self.limits.session))
        if self.limits.month is not None:
            limits.append(Limit("month", month, self.limits.month))
        return limits


def default_model(provider: str) -> str | None:
    """Return the model that a provider draws with where none is named, None where it chooses by itself."""
    row = PROVIDERS.get(provider)
    return (row.default_model or None) if row is not None else None
