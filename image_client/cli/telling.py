"""What is said of a batch at its end."""

import typer

from image_client.batch import Outcome
from image_client.cli.terminal import fail, out
from image_client.ledger import DRAWN, Ledger, Record
from image_client.money import shown

_MOST_TOLD = 10
# What goes on with the images that are not there.
_WAYS = (("failed", " --failed"), ("unknown", " --unknown"), ("accepted", ""))


def tell(ledger: Ledger, outcome: Outcome) -> None:
    """Say how many images there are, what they cost, and which are missing and why; ends the command where some are."""
    folder, drawn = ledger.folder, [record for record in outcome.records if record.state in DRAWN]
    _say(f"{len(drawn)} of {len(outcome.records)} images in {folder}, {shown(outcome.cost)} in all.")
    if outcome.drawn_now:
        rate = outcome.drawn_now / max(outcome.seconds, 0.001)
        _say(f"{outcome.drawn_now} now, in {outcome.seconds:.1f} s ({rate:.1f} a second).")
    _doubts(ledger, outcome, drawn)
    for state, option in _WAYS:
        group = [record for record in outcome.records if record.state == state]
        for record in group[:_MOST_TOLD]:
            _say(f"{record.index + 1} {state}: {record.reason}")
        if group:
            _say(f"{len(group)} {state}: image-client resume {folder}{option}")
    if outcome.stopped is not None:
        fail(f"{outcome.stopped} `image-client resume {folder}` goes on.")
    if len(drawn) < len(outcome.records):
        raise typer.Exit(1)


def _doubts(ledger: Ledger, outcome: Outcome, drawn: list[Record]) -> None:
    """Say which images are not what one would think."""
    if unpriced := sum(record.cost is None for record in drawn):
        _say(f"The cost of {unpriced} of them is unknown.")
    if lost := [record for record in drawn if not (ledger.folder / str(record.file)).is_file()]:
        _say(f"{len(lost)} files are gone, {lost[0].file} first.")
    equal = [record for record in drawn if record.duplicate_of is not None]
    for record in equal[:_MOST_TOLD]:
        _say(f"{record.file} is the same image as {outcome.records[record.duplicate_of or 0].file}.")


def _say(text: str) -> None:
    out.print(text, markup=False)
