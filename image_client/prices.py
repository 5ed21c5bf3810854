"""What an image costs: rows with a source and a date, read from prices.json and from files of the caller's own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from image_client.errors import InvalidRequest, NotSent
from image_client.request import ImageRequest

_SHIPPED = Path(__file__).with_name("prices.json")
_MEGAPIXEL = 1_000_000
DEFAULT_SIDE = 1024  # pixels: what is assumed where no size is asked for


class PriceUnknown(NotSent):
    """No price is known for this provider and model, so no budget can hold: nothing was sent."""

    code = "price_unknown"
    hint = "Add a row with --prices FILE, or allow it with --allow-unknown-price."


class Price(BaseModel):
    """One row: what `usd` buys, where that was read and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    model: str  # as the provider names it; `*` for every model of a provider
    unit: Literal["image", "megapixel", "second"]
    usd: Decimal = Field(ge=0, allow_inf_nan=False)
    source: str = Field(min_length=1)
    read: date
    round_up: bool = False  # a megapixel that is begun is charged whole; so assumed where a provider does not say

    def cost(self, width: int | None, height: int | None, seconds: float | None = None) -> Decimal | None:
        """Return the dollars of one image, None for a price by the second where the seconds are not known."""
        if self.unit == "image":
            return self.usd
        if self.unit == "second":
            return None if seconds is None else self.usd * Decimal(repr(seconds))
        megapixels = Decimal((width or DEFAULT_SIDE) * (height or DEFAULT_SIDE)) / _MEGAPIXEL
        return self.usd * (megapixels.to_integral_value(ROUND_CEILING) if self.round_up else megapixels)


class GpuPrice(BaseModel):
    """What a second of a GPU costs on a platform."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    platform: str
    gpu: str
    usd_per_second: Decimal = Field(ge=0, allow_inf_nan=False)
    source: str = Field(min_length=1)
    read: date


class _PriceFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    about: str = ""
    prices: tuple[Price, ...] = ()
    gpus: tuple[GpuPrice, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceBook:
    """All rows; a later one wins."""

    prices: tuple[Price, ...]
    gpus: tuple[GpuPrice, ...] = ()

    @classmethod
    def load(cls, files: Sequence[Path] = ()) -> Self:
        """Return the shipped rows, then those of `files`; raises InvalidRequest for a file that is no price file."""
        read = [_read(path) for path in (_SHIPPED, *files)]
        return cls(tuple(row for file in read for row in file.prices), tuple(row for file in read for row in file.gpus))

    def find(self, provider: str, model: str | None) -> Price | None:
        """Return the row of a model; one that names it wins over `*`."""
        rows = [row for row in self.prices if row.provider == provider]
        for name in (model, "*"):
            if named := [row for row in rows if row.model == name]:
                return named[-1]
        return None

    def gpus_named(self, gpu: str) -> list[GpuPrice]:
        """Return what a GPU costs at each platform that has it."""
        return [row for row in self.gpus if row.gpu.casefold() == gpu.casefold()]

    def of_request(self, provider: str, request: ImageRequest, seconds: float) -> Decimal | None:
        """Return the dollars of one image of a request that took `seconds`: what a client asks."""
        return self.image(provider, request.model, (request.width, request.height), seconds)

    def image(
        self, provider: str, model: str | None, size: tuple[int | None, int | None], seconds: float | None = None
    ) -> Decimal | None:
        """Return the dollars of one image of `size` (width and height in pixels), None where they are unknown.

        `seconds` are what one image takes of a provider that bills by the second.
        """
        price = self.find(provider, model)
        return None if price is None else price.cost(*size, seconds)


@lru_cache(maxsize=32)
def _parsed(path: Path, modified_ns: int) -> _PriceFile:
    try:
        return _PriceFile.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        reason = str(error).splitlines()
        raise InvalidRequest(f"{path} is no price file: {' '.join(line.strip() for line in reason[:3])}.") from error


def _read(path: Path) -> _PriceFile:
    try:
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read as a price file: {error.strerror}.") from error
    return _parsed(path, modified)
