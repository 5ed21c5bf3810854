"""`cost`: what was spent, as a table, JSON, CSV or a curve."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from image_client.cli.options import Money
from image_client.cli.terminal import failures, out, table
from image_client.money import shown
from image_client.report import by, tracking, write_csv, write_plot, write_tracking
from image_client.spending import Call, SpendingLedger


def cost(
    money: Money,
    month: Annotated[str | None, typer.Option(help="Of one month alone, such as 2026-11.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write it as cost-tracking.json does.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line for each call.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the sum over time as SVG.")] = None,
) -> None:
    """Say what was spent: by month, session and model; and what the budget leaves."""
    with failures():
        with SpendingLedger(money.ledger) as ledger:
            calls = ledger.calls("month", month) if month is not None else ledger.calls()
            spent = ledger.committed("month", f"{datetime.now(UTC):%Y-%m}")
        limits = money.limits()
        if export is not None:
            out.print(str(write_tracking(export, calls, limits)), markup=False)
        if csv is not None:
            out.print(str(write_csv(csv, calls)), markup=False)
        if plot is not None:
            out.print(str(write_plot(plot, calls, limits.month)), markup=False)
        if as_json:
            out.print_json(json.dumps(tracking(calls, limits)))
        elif export is csv is plot is None:
            _show(calls)
            left = "" if limits.month is None else f"; the budget leaves {shown(max(limits.month - spent, 0 * spent))}"
            out.print(f"{shown(spent)} this month{left}.", markup=False)


def _show(calls: list[Call]) -> None:
    groups: tuple[tuple[str, Callable[[Call], str]], ...] = (
        ("month", lambda call: call.month),
        ("session", lambda call: call.session),
        ("model", lambda call: f"{call.provider}/{call.model}" if call.model else call.provider),
    )
    for head, key in groups:
        rows = []
        for name, sums in by(calls, key).items():
            unknown = sums["images_of_unknown_price"]
            rows.append(
                (
                    name,
                    f"{sums['images']:,}",
                    f"${sums['cost_usd']:,.4f}",
                    f"${sums['open_usd']:,.4f}" if sums["open_usd"] else "",
                    f"{unknown:,} of unknown price" if unknown else "",
                )
            )
        table(head, "images", "cost", "of which open", "", rows=rows)
        out.print()
