"""Placement over a whole fleet: fewer bytes moved and a shorter tail than any load balancer's."""

import pytest

from benchmarks.placement import Fleet, compare


@pytest.mark.parametrize("rate", [0.4, 1.2], ids=["light", "heavy"])
def test_ours_moves_the_fewest_bytes_and_has_the_shortest_tail(rate: float) -> None:
    outcomes = compare(Fleet(jobs=1_000, rate=rate))
    ours = outcomes.pop("ours")
    by_hash = outcomes.pop("by hash")
    assert set(outcomes) == {"round robin", "power of two", "least loaded"}
    for other in outcomes.values():
        assert ours.loaded_bytes < 0.6 * other.loaded_bytes
        assert ours.fetched_bytes < 0.6 * other.fetched_bytes
        assert ours.p99_s < 0.8 * other.p99_s
    # One place for ever moves little too, and leaves whoever wants a popular model waiting.
    assert ours.p99_s < by_hash.p99_s
