"""Sums of US dollars: exact, and written so that people can read them."""

from decimal import ROUND_HALF_UP, Decimal

_NANO = Decimal(10) ** 9
CENT = Decimal("0.01")


def nano(dollars: Decimal) -> int:
    """Return billionths of a dollar: whole numbers, which a database can add up without an error."""
    return int((dollars * _NANO).to_integral_value(ROUND_HALF_UP))


def dollars_of(nano_dollars: int) -> Decimal:
    """Return billionths of a dollar as dollars."""
    return Decimal(nano_dollars) / _NANO


def shown(dollars: Decimal | None) -> str:
    """Return `$1.50`, `$0.003` where cents are too coarse, or `unknown`."""
    if dollars is None:
        return "unknown"
    rounded = dollars.quantize(CENT, ROUND_HALF_UP)
    return (
        f"${rounded:,}"
        if rounded == dollars or dollars >= 1
        else f"${dollars.quantize(Decimal('0.000001')).normalize():f}"
    )
