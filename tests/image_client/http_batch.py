"""A process that runs a batch against a server: python -m tests.image_client.http_batch URL FOLDER COUNT PROVIDER."""

import asyncio
import json
import sys
from decimal import Decimal
from pathlib import Path

from image_client.batch import Again, BatchRun, Outcome
from image_client.budget import Budget, Limits
from image_client.client import ImageClient
from image_client.options import ClientOptions
from image_client.prices import Price, PriceBook
from image_client.prompts_file import Job
from image_client.spending import SpendingLedger
from image_client.starting import begin_batch

_ROW = {"model": "*", "unit": "image", "usd": "0.003", "source": "a test", "read": "2026-11-30"}
PRICES = PriceBook(tuple(Price(provider=name, **_ROW) for name in ("mock", "selfhosted")))
HASTY = ClientOptions(first_byte=1.0, deadline=60.0)  # a server that hangs is asked again soon


def jobs(count: int) -> list[Job]:
    fields = {"width": 32, "height": 32}
    return [Job(index=number, fields={"prompt": f"apple {number}", **fields}) for number in range(count)]


def budget_of(folder: Path, dollars: Decimal | None = None) -> Budget:
    ledger = SpendingLedger(folder / "spending.sqlite")
    return Budget(ledger, PRICES, "test", Limits(dollars, None))


async def run(
    url: str,
    folder: Path,
    count: int,
    concurrency: int = 50,
    again: Again | None = None,
    options: ClientOptions = HASTY,
    provider: str = "mock",
) -> Outcome:
    def connect(options: ClientOptions) -> ImageClient:
        return ImageClient(provider, base_url=url, options=options)

    with begin_batch(folder / "results", jobs(count), provider, None) as ledger:
        budget = budget_of(folder)
        batch = BatchRun(ledger, budget, connect, concurrency=concurrency, options=options, again=again or Again())
        return await batch.run()


if __name__ == "__main__":
    outcome = asyncio.run(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), provider=sys.argv[4]))
    print(json.dumps({"stopped": outcome.stopped, "drafted": outcome.count("drafted")}))
