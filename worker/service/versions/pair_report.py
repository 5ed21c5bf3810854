"""How two versions compare by their pairs: the distance of the images, the seconds of both, and what people chose."""

from collections.abc import Iterable, Sequence
from math import comb

from worker.core.pair import EQUAL, Choice, Pair
from worker.core.version import ComparedPairs, JudgedPair
from worker.service.usage.record import OK
from worker.service.versions.intervals import mean_interval, share_interval
from worker.service.versions.judging import choices_of

NEWEST = 20


def compare_pairs(lines: Iterable[Pair | Choice], model: str) -> tuple[ComparedPairs, ...]:
    """Compare each two versions of a model that have pairs."""
    lines = [line for line in lines if line.model == model]
    choices = choices_of(lines)
    groups: dict[tuple[str, str], list[Pair]] = {}
    for line in lines:
        if isinstance(line, Pair):
            first, second = sorted((line.first, line.second), key=lambda name: (len(name), name))  # v9 before v10
            groups.setdefault((first, second), []).append(line)
    return tuple(_compared(first, second, group, choices) for (first, second), group in sorted(groups.items()))


def sign_test(one: int, other: int) -> float | None:
    """Return the probability of counts at least as far apart, either way, if both were as likely; None of none."""
    total, most = one + other, max(one, other)
    if not total:
        return None
    lopsided = sum(comb(total, count) for count in range(most, total + 1))
    return min(1.0, float(2 * lopsided / (1 << total)))


def _compared(first: str, second: str, pairs: Sequence[Pair], choices: dict[str, str]) -> ComparedPairs:
    failed = sum(pair.outcome != OK for pair in pairs)
    chosen = [choices[pair.id] for pair in pairs if pair.id in choices]
    one, other = chosen.count(first), chosen.count(second)
    seconds = [_seconds(pair, first) for pair in pairs]
    slower = [pair[1] - pair[0] for pair in seconds if pair[0] is not None and pair[1] is not None]
    costs = [pair.second_usd for pair in pairs if pair.second_usd is not None]
    newest = sorted(pairs, key=lambda pair: pair.at, reverse=True)[:NEWEST]
    return ComparedPairs(
        first=first,
        second=second,
        pairs=len(pairs),
        failed=failed,
        error_rate=share_interval(failed, len(pairs)),
        distance=mean_interval([pair.distance for pair in pairs if pair.distance is not None], least=0.0),
        slower_s=mean_interval(slower),
        usd=sum(costs) if costs else None,
        chose_first=one,
        chose_second=other,
        chose_equal=chosen.count(EQUAL),
        prefer_second=share_interval(other, one + other),
        chance=sign_test(one, other),
        newest=tuple(
            JudgedPair(pair.at, pair.distance, *_seconds(pair, first), choices.get(pair.id)) for pair in newest
        ),
    )


def _seconds(pair: Pair, first: str) -> tuple[float | None, float | None]:
    """Return a pair's seconds in the order of its versions, whichever of them answered the caller."""
    return (pair.first_s, pair.second_s) if pair.first == first else (pair.second_s, pair.first_s)
