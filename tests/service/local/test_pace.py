"""How many images go into a call: what was measured decides, and a batch never lowers throughput."""

import asyncio

import pytest

from tests.fakes.engine import make_context
from worker.service.local.pace import CallKind, Paces

SMALL, LARGE = CallKind("sd", "512", 512 * 512), CallKind("sd", "1024", 1024 * 1024)


def settled(seconds, kind=SMALL, bound=8, paces=None):
    """The number of images on which a queue that is always full settles, where a call takes `seconds(images)`."""
    paces = paces or Paces()
    chosen = []
    for _ in range(60):
        chosen.append(paces.most(kind, bound))
        paces.note(kind, chosen[-1], seconds(chosen[-1]))
    assert len({*chosen[-10:]}) == 1
    return chosen[-1]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (lambda n: 1.0, 8),  # the device has room for all
        (lambda n: 0.5 + 0.5 * n, 8),
        (lambda n: float(n), 1),  # one image keeps it busy
        (lambda n: n * (1.0 if n < 2 else 1.1), 1),  # together they are slower
        (lambda n: max(1.0, n / 2), 2),  # two fill it
        (lambda n: 1.0 if n <= 4 else 3.0, 4),
    ],
)
def test_images_share_a_call_up_to_where_they_come_fastest(seconds, best):
    assert settled(seconds) == best


def test_a_first_call_which_warms_up_and_one_that_was_disturbed_decide_nothing():
    made = []

    def seconds(images):
        made.append(images)
        return 100.0 if made.count(images) in (1, 3) else 1.0

    assert settled(seconds) == 8


def test_what_was_learnt_of_one_size_is_the_first_guess_for_another_of_the_same_model():
    paces = Paces()
    assert paces.most(LARGE, 8) == 8
    assert settled(lambda n: max(1.0, n / 4), paces=paces) == 4
    assert paces.budget("sd") == 4 * SMALL.pixels
    assert paces.most(LARGE, 8) == 1
    assert paces.most(CallKind("sd", "256", 256 * 256), 32) == 16
    assert paces.most(CallKind("other", "1024", 1024 * 1024), 8) == 8
    assert settled(lambda n: 1.0, LARGE, paces=paces) == 8  # and no more than a guess


@pytest.mark.parametrize(
    ("seconds", "size"), [(lambda images: images * 1.2 if images > 1 else 1.0, 1), (lambda images: 0.5, 4)]
)
async def test_a_worker_batches_where_that_raises_throughput_and_nowhere_else(tmp_path, seconds, size):
    context = make_context(tmp_path, batch_size=4, batch_timeout_ms=500)
    context.engine.seconds = seconds
    for _ in range(60):  # a busy machine may part jobs that were sent together; in the end it is learnt all the same
        await asyncio.gather(*(context.draw(seed=seed) for seed in range(4)))
        if {len(call) for call in context.engine.calls[-8:]} == {size} and len(context.engine.calls) > 20:
            return
    raise AssertionError([len(call) for call in context.engine.calls])
