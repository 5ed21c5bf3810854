"""The way of a drawn image to its approval: drafted → scored → approved | rejected, each step a line of the ledger."""

from collections.abc import Sequence

from image_client.errors import InvalidRequest
from image_client.ledger import DRAWN, Ledger, Record
from image_client.scoring import Candidate, Rule, Scorer, ScoringError, scores_of


def score_all(ledger: Ledger, scorers: Sequence[Scorer]) -> list[str]:
    """Score every drawn image in order, and return a sentence for each reason that one could not be."""
    faults = []
    for record in ledger.records():
        if record.state not in DRAWN or record.file is None:
            continue
        try:
            scores = scores_of(Candidate(record, ledger.folder / record.file), scorers)
        except ScoringError as error:
            faults.append(error.message)
            continue
        state = "scored" if record.state == "drafted" else record.state
        if (state, scores) != (record.state, record.scores):
            ledger.add(record.index, state, scores=scores)
    return [*dict.fromkeys(faults)]


def apply_rules(ledger: Ledger, rules: Sequence[Rule]) -> list[Record]:
    """Reject the images that break a rule, unless somebody has decided on them; return those."""
    rejected = []
    for record in queue(ledger):
        reasons = [reason for rule in rules if (reason := rule.reason(record.scores))]
        if reasons:
            rejected.append(reject(ledger, record.index, "; ".join(reasons)))
    return rejected


def queue(ledger: Ledger) -> list[Record]:
    """Return the images that nobody has decided on, in order."""
    return [record for record in ledger.records() if record.state in ("drafted", "scored")]


def approve(ledger: Ledger, index: int) -> Record:
    """Approve an image; one that was rejected too. Raises InvalidRequest where there is none."""
    _drawn(ledger, index)
    return ledger.add(index, "approved", reason=None)


def reject(ledger: Ledger, index: int, reason: str) -> Record:
    """Reject an image and say why; raises InvalidRequest without a reason, or where there is no image."""
    _drawn(ledger, index)
    if not reason.strip():
        raise InvalidRequest("reason is empty: say why the image is rejected.")
    return ledger.add(index, "rejected", reason=reason.strip())


def undecide(ledger: Ledger, index: int) -> Record:
    """Take a decision back; raises InvalidRequest where there is no image."""
    _drawn(ledger, index)
    return ledger.add(index, "scored" if ledger[index].scores else "drafted", reason=None)


def _drawn(ledger: Ledger, index: int) -> None:
    if not 0 <= index < len(ledger.jobs):
        raise InvalidRequest(f"There is no image {index + 1}: the batch has {len(ledger.jobs)}.")
    if ledger[index].state not in DRAWN:
        raise InvalidRequest(f"Image {index + 1} is {ledger[index].state}: it must be drawn before that.")
