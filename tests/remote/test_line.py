"""Whose turn it is at a replica: models that are asked for at once do not take turns with every job."""

from worker.remote.line import CHANGE_S, LINGER_S, MORE_S, TURN_JOBS, TURN_S, Line
from worker.remote.replica import Choice, ReplicaState


def choice(replica: str = "one", *, evicted: str | None = None, move_s: float = 0.0, wait_s: float = 0.0) -> Choice:
    return Choice(
        replica=replica,
        tier=None,
        model="pear",
        nearness="resident" if evicted is None else "disk",
        moved_bytes=0,
        offload="none",
        wait_s=wait_s,
        start_s=0.0,
        move_s=move_s,
        run_s=1.0,
        usd=0.0,
        evicted=evicted,
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_model_that_others_wait_for_is_evicted_only_after_its_turn() -> None:
    clock = Clock()
    line = Line(clock)
    line.sent("apple", choice())
    with line.waiting("apple") as apple, line.waiting("pear") as pear:
        assert line.next([choice(evicted="apple")], pear) is None
        assert line.next([choice(evicted="apple"), choice("two", evicted="plum")], pear) is not None
        clock.now += TURN_S + MORE_S
        assert line.next([choice(evicted="apple")], pear) is not None
        line.sent("pear", choice(evicted="apple"))
        with line.waiting("pear"):
            assert line.next([choice(evicted="pear")], apple) is None  # now it is the other's turn


def test_a_turn_is_longer_where_loading_takes_longer() -> None:
    clock = Clock()
    line = Line(clock)
    line.sent("apple", choice(evicted="pear", move_s=40.0))
    with line.waiting("apple"), line.waiting("pear") as pear:
        clock.now += 40.0 + 3 * 40.0 + MORE_S - 1.0
        assert line.next([choice(evicted="apple")], pear) is None
        clock.now += 1.0
        assert line.next([choice(evicted="apple")], pear) is not None


def test_a_turn_of_few_jobs_goes_on_for_a_while_and_one_of_many_ends_in_time() -> None:
    clock = Clock()
    line = Line(clock)
    with line.waiting("apple"), line.waiting("pear") as pear:
        for _ in range(TURN_JOBS - 1):
            line.sent("apple", choice())
        clock.now += TURN_S
        assert line.next([choice(evicted="apple")], pear) is None
        line.sent("apple", choice())
        assert line.next([choice(evicted="apple")], pear) is not None


def test_what_no_job_waits_for_is_evicted_once_no_more_of_a_burst_comes() -> None:
    clock = Clock()
    line = Line(clock)
    line.sent("apple", choice())
    with line.waiting("pear") as pear:
        assert line.next([choice(evicted="apple")], pear) is None
        clock.now += LINGER_S
        assert line.next([choice(evicted="apple")], pear) is not None
        with line.waiting("apple"):
            assert line.next([choice(evicted="apple")], pear) is None
        assert line.next([choice(evicted="apple")], pear) is not None


def test_a_job_goes_where_its_model_is_at_work_unless_that_takes_much_longer() -> None:
    line = Line(Clock())
    line.sent("apple", choice("one"))
    with line.waiting("apple") as apple:
        chosen = line.next([choice("two"), choice("one", wait_s=CHANGE_S)], apple)
        assert chosen is not None and chosen.replica == "one"
        chosen = line.next([choice("two"), choice("one", wait_s=CHANGE_S + 1)], apple)
        assert chosen is not None and chosen.replica == "two"


def test_who_waits_counts_for_the_others() -> None:
    line = Line(Clock())
    states = [ReplicaState("one", queue_s=2.0), ReplicaState("two")]
    with line.waiting("apple") as first, line.waiting("apple") as second:
        line.next([choice("one")], first)
        assert [state.queue_s for state in line.states(states, second)] == [3.0, 0.0]
        assert [state.queue_s for state in line.states(states, first)] == [2.0, 0.0]  # not for itself
    with line.waiting("apple") as third:
        assert [state.queue_s for state in line.states(states, third)] == [2.0, 0.0]


def test_a_replica_that_would_have_to_start_is_no_way_around_a_short_wait() -> None:
    line = Line(Clock())
    line.sent("apple", choice("one"))
    with line.waiting("pear") as pear:
        assert line.next([choice("one", evicted="apple"), choice("two", wait_s=30.0)], pear) is None
