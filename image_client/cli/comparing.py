"""`providers` and `compare`: who can be asked, and what one job costs at each."""

import os
from typing import Annotated

import typer

from image_client.cli.options import Drawing, Money
from image_client.cli.terminal import failures, out, table
from image_client.comparing import offers
from image_client.money import shown
from image_client.providers.table import PROVIDERS
from image_client.spending import SpendingLedger


def providers(money: Money) -> None:
    """List the providers: default model, its price, what each can do, and whether a token is set."""
    with failures():
        book = money.book()
        rows = []
        for row in PROVIDERS.values():
            abilities = row.abilities(row.default_model, row.base_url or "")
            price = book.image(row.name, row.default_model or None, (None, None))
            token = next((name for name in row.token_variables if os.environ.get(name)), None)
            wanted = " or ".join(row.token_variables) if row.token_required else "none needed"
            rows.append(
                (
                    row.name,
                    row.default_model or "its own",
                    shown(price),
                    ", ".join(sorted(abilities.operations)),
                    f"{token} is set" if token else wanted,
                    "" if row.base_url else "needs --base-url",
                )
            )
        table("provider", "model", "an image", "can", "token", "", rows=rows)


def compare(
    drawing: Drawing,
    money: Money,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 1,
    gpu: Annotated[str | None, typer.Option(help="The GPU of your own fleet, such as L40S.")] = None,
) -> None:
    """Price one job at every provider, your own fleet with its measured seconds among them."""
    with failures():
        with SpendingLedger(money.ledger) as ledger:
            found = offers(money.book(), ledger, (drawing.width, drawing.height), gpu)
        rows = [
            (
                offer.provider,
                offer.model or "its own",
                shown(offer.usd),
                shown(None if offer.usd is None else offer.usd * n),
                "" if offer.seconds is None else f"{offer.seconds:.1f} s",
                f"{offer.read} {offer.source}".strip(),
            )
            for offer in found
        ]
        table("provider", "model", "an image", f"{n:,} images", "measured", "price read", rows=rows)
        if not any(offer.seconds for offer in found):
            out.print("Nothing was measured here yet: a model's time stands here once it was used.", markup=False)
