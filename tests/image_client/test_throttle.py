"""How many requests are in flight: never more than allowed, fewer after a 429, more again without."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from image_client.options import Attempt
from image_client.throttle import Throttle


def answer(request_id: str, outcome: str, wait: float | None = None) -> Attempt:
    return Attempt(request_id, "p", 1, outcome, None, wait)


async def test_fifty_refusals_of_one_moment_halve_once() -> None:
    throttle = Throttle(50)
    for number in range(50):
        await throttle.enter(f"{number}")
    for number in range(50):
        throttle.hear(answer(f"{number}", "rate_limited"))
    assert throttle.allowed == 25
    for number in range(50):
        throttle.leave(f"{number}")
    await throttle.enter("new")
    throttle.hear(answer("new", "rate_limited"))
    assert throttle.allowed == 12.5 and throttle.lowest == 12


async def test_a_round_of_images_allows_one_more() -> None:
    throttle = Throttle(8)
    throttle.allowed = 4.0
    for _ in range(5):
        throttle.hear(answer("x", "image"))
    assert 4.9 < throttle.allowed < 5.5
    for _ in range(100):
        throttle.hear(answer("x", "image"))
    assert throttle.allowed == 8


async def test_none_begins_while_the_provider_says_wait() -> None:
    throttle = Throttle(4)
    await throttle.enter("a")
    throttle.hear(answer("a", "rate_limited", wait=0.05))
    throttle.leave("a")
    waiting = asyncio.create_task(throttle.enter("b"))
    await asyncio.sleep(0)
    assert not waiting.done() and throttle.in_flight == 0
    async with asyncio.timeout(60):
        await waiting
    assert throttle.in_flight == 1


async def test_who_gives_up_waiting_takes_no_place() -> None:
    throttle = Throttle(1)
    await throttle.enter("a")
    second, third = asyncio.create_task(throttle.enter("b")), asyncio.create_task(throttle.enter("c"))
    await asyncio.sleep(0)
    throttle.leave("a")  # lets b in, which is cancelled before it runs
    second.cancel()
    async with asyncio.timeout(60):
        await third
    assert throttle.in_flight == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.lists(st.sampled_from(["image", "rate_limited", "unavailable"]), max_size=40))
def test_the_ceiling_holds_and_everybody_has_a_turn(ceiling: int, outcomes: list[str]) -> None:
    async def run() -> None:
        throttle = Throttle(ceiling)

        async def one(number: int, outcome: str) -> None:
            await throttle.enter(f"{number}")
            assert throttle.in_flight <= ceiling
            await asyncio.sleep(0)
            throttle.hear(answer(f"{number}", outcome))
            throttle.leave(f"{number}")

        async with asyncio.timeout(60):
            await asyncio.gather(*(one(number, outcome) for number, outcome in enumerate(outcomes)))
        assert throttle.in_flight == 0 and 1 <= throttle.allowed <= ceiling

    asyncio.run(run())
