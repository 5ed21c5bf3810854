"""Blind choices: a person sees the two images of a pair without their versions, and says which is better."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime

from worker.core.errors import InvalidRequest
from worker.core.pair import EQUAL, Choice, Pair, Side
from worker.core.version import PairToJudge
from worker.store.pairs import PairFolder


def next_pair(folder: PairFolder, model: str) -> PairToJudge:
    """Return the oldest pair of a model whose images are kept and that nobody chose of yet. Blocking."""
    waiting = [pair for pair in _open_pairs(folder, model) if pair.id in folder.kept()]
    for pair in waiting:
        images = folder.images(pair)
        if images is not None:
            left, right = images if _first_is_left(pair.id) else images[::-1]
            return PairToJudge(model, len(waiting), pair.id, left, right)
    return PairToJudge(model, 0)


def choose(folder: PairFolder, model: str, pair_id: str | None, side: Side | None, who: str) -> None:
    """Write down which image of a pair is better, and remove both. Blocking.

    Raises InvalidRequest for a pair that is not there or that somebody chose of before, SourceUnavailable.
    """
    if side is None:
        raise InvalidRequest("choice is missing; send left, right or equal.", field="choice")
    pair = next((each for each in _open_pairs(folder, model) if each.id == pair_id), None)
    if pair is None:
        raise InvalidRequest(f"pair is none of {model} that waits for a choice; ask for the next one.", field="pair")
    is_first = (side == "left") == _first_is_left(pair.id)
    choice = EQUAL if side == "equal" else pair.first if is_first else pair.second
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    folder.add(Choice(pair=pair.id, at=at, who=who, model=model, choice=choice))
    folder.drop(pair.id)


def choices_of(lines: Iterable[Pair | Choice]) -> dict[str, str]:
    """Return what was chosen of each pair, by its id: the first choice counts."""
    choices: dict[str, str] = {}
    for line in lines:
        if isinstance(line, Choice):
            choices.setdefault(line.pair, line.choice)
    return choices


def _open_pairs(folder: PairFolder, model: str) -> list[Pair]:
    lines = [line for line in folder.lines() if line.model == model]
    chosen = choices_of(lines)
    return [line for line in lines if isinstance(line, Pair) and line.id not in chosen and line.distance is not None]


def _first_is_left(pair: str) -> bool:
    """Return where an image stands: by chance, and always the same for one pair."""
    return hashlib.sha256(pair.encode()).digest()[0] % 2 == 0
