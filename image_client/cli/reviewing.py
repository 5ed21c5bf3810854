"""`review`: scores for the images of a batch, and somebody who approves or rejects each, here or in a browser."""

import contextlib
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from image_client.approval import apply_rules, approve, queue, reject, score_all
from image_client.cli.terminal import err, failures, out
from image_client.errors import InvalidRequest
from image_client.gallery import Gallery
from image_client.ledger import DRAWN, Ledger, Record
from image_client.scorers import BUILT_IN, scorers_named
from image_client.scoring import Rule

_ASK = "[a]pprove, [r]eject, [o]pen, [s]kip, [q]uit?"


def review(
    folder: Annotated[Path, typer.Argument(help="The folder of a batch.")],
    score: Annotated[str, typer.Option(help="Scores, with commas; `none` for none.")] = ",".join(BUILT_IN),
    least: Annotated[list[str] | None, typer.Option("--min", help="sharpness=20: reject what is below.")] = None,
    most: Annotated[list[str] | None, typer.Option("--max", help="near_duplicate=0.95: reject what is above.")] = None,
    approve_rest: Annotated[bool, typer.Option("--approve-rest", help="Approve what no rule rejects.")] = False,
    gallery: Annotated[bool, typer.Option("--gallery", help="Decide in a browser, on a page of this machine.")] = False,
    port: Annotated[int, typer.Option(help="The gallery's port; 0 is any free one.")] = 0,
) -> None:
    """Score the images of a batch, reject by rules, and ask about each that is left."""
    with failures():
        rules = _rules(least or [], most or [])
        scorers = scorers_named(name.strip() for name in score.split(",") if name.strip() not in ("", "none"))
        with Ledger.open(folder) as ledger:
            for fault in score_all(ledger, scorers):
                err.print(f"warning: {fault}", markup=False)
            for record in apply_rules(ledger, rules):
                out.print(f"{record.file} rejected: {record.reason}", markup=False)
            if gallery:
                _show_gallery(ledger, port)
            else:
                _decide(ledger, approve_rest=approve_rest)
            ledger.sync()
            ledger.write_results()
            counts = {state: ledger.counts[state] for state in DRAWN}
            out.print(", ".join(f"{count} {state}" for state, count in counts.items() if count) or "No image yet.")


def _decide(ledger: Ledger, *, approve_rest: bool) -> None:
    """Approve all that is left, or ask about it where somebody can answer."""
    if approve_rest:
        for record in queue(ledger):
            approve(ledger, record.index)
    elif sys.stdin.isatty():
        _ask_about_each(ledger)


def _show_gallery(ledger: Ledger, port: int) -> None:
    """Serve the gallery until somebody presses Done, or Ctrl-C; what was decided until then stays."""
    try:
        shown = Gallery(ledger, port=port)
    except OSError as error:
        raise InvalidRequest(f"--port {port} cannot be used ({error.strerror}): name another, or 0.") from error
    with shown, contextlib.suppress(KeyboardInterrupt):
        err.print(f"Decide at {shown.url}\nDone on the page, or Ctrl-C here, ends it.", markup=False)
        webbrowser.open(shown.url)
        shown.wait()


def _rules(least: list[str], most: list[str]) -> list[Rule]:
    rules = [Rule(name, least=value) for name, value in map(_bound, least)]
    return rules + [Rule(name, most=value) for name, value in map(_bound, most)]


def _ask_about_each(ledger: Ledger) -> None:
    waiting = queue(ledger)
    for number, record in enumerate(waiting, start=1):
        _show(ledger, record, f"{number}/{len(waiting)}")
        while True:
            err.print(_ASK, markup=False, end=" ")
            line = sys.stdin.readline()
            answer, _, reason = line.strip().partition(" ")
            match answer.lower():
                case "a" | "approve":
                    approve(ledger, record.index)
                case "r" | "reject":
                    reject(ledger, record.index, reason or _reason())
                case "o" | "open":
                    webbrowser.open((ledger.folder / str(record.file)).absolute().as_uri())
                    continue
                case "s" | "skip":
                    pass
                case "q" | "quit":
                    return
                case _:
                    if not line:  # the terminal is gone
                        return
                    continue
            break


def _show(ledger: Ledger, record: Record, place: str) -> None:
    scores = "  ".join(f"{name} {value:.3g}" for name, value in record.scores.items())
    again = "" if record.duplicate_of is None else f"  the same image as {ledger[record.duplicate_of].file}"
    out.print(f"{place}  {ledger.folder / str(record.file)}{again}", markup=False, style="bold")
    out.print(record.prompt, markup=False)
    out.print(f"seed {record.seed}  {scores}", markup=False)


def _reason() -> str:
    while True:
        err.print("Why?", markup=False, end=" ")
        line = sys.stdin.readline()
        if line.strip() or not line:
            return line.strip() or "no reason was given"


def _bound(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise InvalidRequest(f"{text!r} is no rule: say a score and its bound, such as sharpness=20.") from None
