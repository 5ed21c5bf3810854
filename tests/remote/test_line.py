"""Whose turn it is at a replica: models that are asked for at once do not take turns with every job."""

from worker.remote.line import TURN_S, Line
from worker.remote.replica import Choice


def choice(replica: str = "one", *, evicted: str | None = None, move_s: float = 0.0) -> Choice:
    return Choice(
        replica=replica,
        tier=None,
        model="pear",
        nearness="resident" if evicted is None else "disk",
        moved_bytes=0,
        offload="none",
        wait_s=0.0,
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
    with line.waiting("apple"):
        assert not line.lets(choice(evicted="apple"))
        assert line.lets(choice("two", evicted="pear"))  # nobody waits for that
        clock.now += TURN_S
        assert line.lets(choice(evicted="apple"))
        line.sent("pear", choice(evicted="apple"))
        with line.waiting("pear"):
            assert not line.lets(choice(evicted="pear"))  # now it is the other's turn
    assert line.lets(choice(evicted="apple"))


def test_a_turn_is_longer_where_loading_takes_longer() -> None:
    clock = Clock()
    line = Line(clock)
    line.sent("apple", choice(evicted="pear", move_s=40.0))
    with line.waiting("apple"):
        clock.now += 40.0 + 3 * 40.0 - 1.0
        assert not line.lets(choice(evicted="apple"))
        clock.now += 1.0
        assert line.lets(choice(evicted="apple"))


def test_what_no_job_waits_for_is_evicted_at_once() -> None:
    line = Line(Clock())
    line.sent("apple", choice())
    assert line.lets(choice(evicted="apple"))
    with line.waiting("apple"):
        pass
    assert line.lets(choice(evicted="apple"))
