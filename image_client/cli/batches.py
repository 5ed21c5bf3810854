"""`batch` and `resume`: many images from a list, as a folder that goes on where it was stopped."""

import asyncio
import contextlib
import signal
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from image_client.batch import Again, BatchRun, Outcome
from image_client.budget import Budget
from image_client.cli.options import Drawing, Money, Sending
from image_client.cli.telling import tell
from image_client.cli.terminal import BatchBar, agreed, alerts_shown, err, fail, failures
from image_client.estimate import Estimate, estimate
from image_client.ledger import Ledger
from image_client.money import shown
from image_client.prompts_file import read_jobs, repeated
from image_client.report import write_tracking
from image_client.starting import begin_batch

Concurrency = Annotated[int, typer.Option("--concurrency", "-c", min=1, max=1000, help="Images at once, at most.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Agree to what it costs.")]


def batch(
    prompts: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .txt file.")],
    sending: Sending,
    drawing: Drawing,
    money: Money,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the batch.")] = Path("results"),
    concurrency: Concurrency = 50,
    yes: Yes = False,
) -> None:
    """Generate all images of a list; typed again it goes on where it was stopped."""
    with failures():
        jobs = read_jobs(prompts, drawing.as_fields())
        if count := repeated(jobs):
            err.print(f"{count} of {len(jobs)} jobs ask for the very image of an earlier one.", markup=False)
        asyncio.run(_checked(sending))
        with begin_batch(
            out,
            jobs,
            sending.provider,
            sending.model,
            fallback=sending.fallback or (),
            base_url=sending.base_url,
            source=prompts.name,
        ) as ledger:
            _go_on(ledger, sending, money, concurrency, Again(), yes=yes)


def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a batch.")],
    sending: Sending,
    money: Money,
    failed: Annotated[bool, typer.Option("--failed", help="Send again what failed.")] = False,
    unknown: Annotated[bool, typer.Option("--unknown", help="Send again what may have been charged already.")] = False,
    concurrency: Concurrency = 50,
    yes: Yes = False,
) -> None:
    """Go on with a batch, at the provider that it began with."""
    with failures(), Ledger.open(folder) as ledger:
        info = ledger.info
        same = Sending(
            provider=info.provider,
            model=info.model,
            base_url=sending.base_url or info.base_url,
            fallback=[*info.fallback],
            fit=sending.fit,
            timeout=sending.timeout,
            deadline=sending.deadline,
        )
        _go_on(ledger, same, money, concurrency, Again(failed, unknown), yes=yes)


async def _checked(sending: Sending) -> None:
    """Raise for an unknown provider, a missing token or address, before there is a folder."""
    await sending.connect(sending.options()).close()


def _go_on(ledger: Ledger, sending: Sending, money: Money, concurrency: int, again: Again, *, yes: bool) -> None:
    """Ask for what it will cost, generate what is missing, and tell how it went."""
    alerts_shown()
    with money.budget_of(sending, ledger.info.id) as budget:
        outcome = _generated(ledger, sending, budget, concurrency, again, yes=yes)
        write_tracking(ledger.folder / "cost-tracking.json", budget.ledger.calls(), budget.limits)
    tell(ledger, outcome)


def _generated(
    ledger: Ledger, sending: Sending, budget: Budget, concurrency: int, again: Again, *, yes: bool
) -> Outcome:
    remaining = estimate(ledger, budget, again, sending.model)
    if remaining.images:
        _agree(remaining, budget, yes=yes)
    done = ledger.counts.total() - remaining.images
    with BatchBar(len(ledger.jobs), done) as bar:
        run = BatchRun(
            ledger,
            budget,
            sending.connect,
            concurrency=concurrency,
            options=sending.options(),
            again=again,
            on_progress=bar.show,
        )
        return asyncio.run(_interruptible(run))


def _agree(remaining: Estimate, budget: Budget, *, yes: bool) -> None:
    for quote, request in remaining.quotes:
        budget.check(remaining.provider, request, quote)
    left = budget.left()
    if left is not None and remaining.most is not None and remaining.most > left:
        err.print(f"The budget leaves {shown(left)}: the batch will stop there and can be resumed.", markup=False)
    if remaining.most != Decimal(0) and not agreed(remaining.sentence(), yes=yes):
        fail("Nothing was sent.")


async def _interruptible(run: BatchRun) -> Outcome:
    """Run; the first Ctrl-C begins no more images, the second one takes back those in flight."""
    task = asyncio.ensure_future(run.run())

    def interrupt() -> None:
        if run.stopped is not None:
            task.cancel()
        run.stop("It was interrupted.")

    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C takes everything back at once
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    return await task
