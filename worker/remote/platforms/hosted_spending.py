"""What a hosted provider may be paid: so much an image, and so much a day (UTC). Reserved before a call, settled after.

The book is image_client's, a file that outlives the gateway. What may have been charged counts as spent.
"""

import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from image_client.spending import BudgetExceeded, Call, Limit, SpendingLedger


@dataclass(frozen=True, slots=True)
class HostedPrice:
    """What a provider asks, and what the operator allows, in US dollars. A megapixel that is begun is charged whole."""

    per_image: Decimal
    per_megapixel: Decimal
    most_per_image: Decimal
    most_per_day: Decimal

    def of_image(self, width: int, height: int) -> Decimal:
        """Return the price of one image of this size."""
        return self.per_image + self.per_megapixel * math.ceil(width * height / 1e6)


class OverLimit(Exception):
    """The job would cost more than the operator allows: nothing may be sent. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The money for one call: so much an image, for `images` of them."""

    key: str
    each: Decimal
    images: int


class Spending:
    """The money of one provider, `name` in fleet.yaml. Blocking; from any thread. Raises OSError and sqlite3.Error."""

    def __init__(self, file: Path, name: str, price: HostedPrice) -> None:
        self._file = file
        self._name = name
        self._price = price

    def reserve(self, provider: str, model: str, images: int, size: tuple[int, int]) -> Reservation:
        """Set aside what `images` of this size, width and height, may cost. Raises OverLimit."""
        each, most = self._price.of_image(*size), self._price.most_per_day
        if each > self._price.most_per_image:
            raise OverLimit(
                f"{self._name} asks ${each:f} for an image of {size[0]}x{size[1]}, and max_usd_per_image in fleet.yaml "
                f"is ${self._price.most_per_image:f}; ask for a smaller size."
            )
        now = datetime.now(UTC)
        reserved = Reservation(uuid.uuid4().hex, each, images)
        call = Call(
            key=reserved.key,
            session=self._day(now),
            month=f"{now:%Y-%m}",
            provider=provider,
            model=model,
            images=images,
            state="reserved",
            dollars=each * images,
            seconds=None,
            began=now.isoformat(timespec="milliseconds"),
            ended=None,
        )
        try:
            self._ledger.reserve(call, [Limit("session", call.session, most)], ())
        except BudgetExceeded:
            raise OverLimit(
                f"{self._name} may be paid ${most:f} a day (max_usd_per_day in fleet.yaml), of which ${self.left():f} "
                f"are left, and the job costs ${each * images:f}; come back tomorrow (UTC)."
            ) from None
        return reserved

    def settle(self, reserved: Reservation, dollars: Decimal, seconds: float | None) -> None:
        """Write down what a call cost in the end."""
        self._ledger.settle(reserved.key, dollars, seconds)

    def release(self, reserved: Reservation) -> None:
        """Take back what a call that cannot have run was to cost."""
        self._ledger.release(reserved.key)

    def doubt(self, reserved: Reservation) -> None:
        """Write down that a call may have been charged."""
        self._ledger.doubt(reserved.key)

    def left(self) -> Decimal:
        """Return the dollars that may still be spent today."""
        spent = self._ledger.committed("session", self._day(datetime.now(UTC)))
        return max(Decimal(0), self._price.most_per_day - spent)

    @cached_property
    def _ledger(self) -> SpendingLedger:
        return SpendingLedger(self._file)

    def _day(self, now: datetime) -> str:
        return f"{self._name} {now:%Y-%m-%d}"
