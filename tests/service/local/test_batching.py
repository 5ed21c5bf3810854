"""Jobs that share a call, each with its own answer: company, cancels, deadlines, failures, cost."""

import asyncio

import pytest

from tests.answers import files_of
from tests.fakes.engine import FakeEngine, make_context
from tests.service.local.test_backend import cancelled, lost, queued
from tests.waiting import LIMIT_S
from worker.core.errors import DeviceLost, EngineFailure, InvalidOutput, JobTimeout, LoadFailed, OutOfMemory
from worker.service.local import batching

WAIT_S = 10  # for company; it goes by when a test's clock says so, so that all who are sent together have come before


@pytest.fixture
def context(tmp_path):
    """A worker whose batches are full, or begin once the clock is put forward."""
    return make_context(tmp_path, batch_size=4, batch_timeout_ms=WAIT_S * 1000, max_resident_models=2)


def drawing(context, *prompts, **fields):
    """Tasks that draw one job for each prompt."""
    return [asyncio.create_task(context.draw(prompt=prompt, seed=ord(prompt[0]), **fields)) for prompt in prompts]


def calls(context):
    """The prompts of each call, sorted: which of several comes first is nobody's promise."""
    return ["".join(sorted(prompts)) for prompts in context.engine.calls]


async def lone(context, clock, **fields):
    """A job whose wait for company is over."""
    task = asyncio.create_task(context.draw(**fields))
    await queued(context, 1)
    await clock.pass_by(WAIT_S)
    return task


async def inside(context):
    assert await asyncio.to_thread(context.engine.inside.wait, LIMIT_S)


async def waiting_behind(context, clock, *prompts, **fields):
    """Jobs that all wait while another one holds the engine; and that one."""
    context.engine.gate.clear()
    first = await lone(context, clock, prompt="first", width=32)
    await inside(context)
    tasks = drawing(context, *prompts, **fields)
    await queued(context, len(tasks))
    return first, tasks


async def test_jobs_that_come_together_are_drawn_together_each_with_its_own_image(context):
    answers = await asyncio.gather(*drawing(context, *"abcd"))
    assert calls(context) == ["abcd"]
    assert [answer["prompt"] for answer in answers] == [*"abcd"]
    assert [answer["seed"] for answer in answers] == [ord(prompt) for prompt in "abcd"]
    assert {answer["timings"]["batch_size"] for answer in answers} == {4}
    assert len({answer["image"] for answer in answers}) == 4


async def test_a_full_batch_waits_for_no_timer_and_a_lone_job_for_nothing_else(tmp_path):
    for wait_s, prompts in ((10, "abcd"), (0.4, "a")):
        context = make_context(tmp_path, batch_size=4, batch_timeout_ms=wait_s * 1000)
        timings = [answer["timings"] for answer in await asyncio.gather(*drawing(context, *prompts))]
        assert {each["batch_size"] for each in timings} == {len(prompts)}
        assert all((each["queue_s"] >= wait_s) is (len(prompts) < 4) for each in timings)


async def test_while_the_engine_is_busy_the_next_batch_gathers(context, clock):
    first, tasks = await waiting_behind(context, clock, *"abcdef")
    await clock.pass_by(WAIT_S)
    context.engine.gate.set()
    await asyncio.gather(first, *tasks)
    assert [len(prompts) for prompts in context.engine.calls] == [1, 4, 2]
    assert sorted("".join(calls(context)[1:])) == [*"abcdef"]
    assert context.engine.overlaps == 0


async def test_other_sizes_steps_and_models_are_other_batches(context):
    kinds = [{}, {"steps": 3}, {"width": 128}, {"model": "any"}, {"negative_prompt": "n"}, {"scheduler": "euler"}]
    tasks = [task for kind in kinds for task in drawing(context, *"abcd", **kind)]
    answers = await asyncio.gather(*tasks)
    assert [answer["timings"]["batch_size"] for answer in answers] == [4] * 24
    assert len(context.engine.calls) == 6


@pytest.mark.parametrize("takes", [4, 1])
async def test_progress_goes_to_every_job_of_a_call_and_to_no_other(context, takes):
    told = {prompt: [] for prompt in "abcd"}
    context.engine.takes = takes
    await asyncio.gather(*(context.draw(prompt=prompt, _emit=told[prompt].append) for prompt in told))
    steps = [[item.step for item in told[prompt] if item.phase == "inference"] for prompt in told]
    assert steps == [[1, 2, 3]] * 4


async def test_a_door_that_fails_to_tell_spoils_nobodys_image(context):
    def broken(progress):
        raise OSError("gone")

    answers = await asyncio.gather(context.draw(prompt="a", _emit=broken), *drawing(context, *"bcd"))
    assert [answer["timings"]["batch_size"] for answer in answers] == [4] * 4


async def test_who_leaves_a_running_batch_is_let_go_at_once_and_the_others_get_their_images(context):
    context.engine.gate.clear()
    tasks = drawing(context, *"abcd")
    await inside(context)
    await cancelled(tasks[1])
    assert context.engine.inside.is_set()
    context.engine.gate.set()
    answers = [await task for task in tasks if task is not tasks[1]]
    assert [answer["seed"] for answer in answers] == [ord(prompt) for prompt in "acd"]
    assert len(context.engine.calls) == 1


async def test_whose_time_is_up_in_a_running_batch_is_told_and_the_others_get_their_images(context, clock):
    context.engine.gate.clear()
    late, *stay = drawing(context, "a", timeout_s=20) + drawing(context, *"bcd", timeout_s=60)
    await inside(context)
    await clock.pass_by(20)
    with pytest.raises(JobTimeout):
        await late
    assert context.engine.inside.is_set()
    context.engine.gate.set()
    assert [(await task)["timings"]["batch_size"] for task in stay] == [4, 4, 4]


async def test_when_all_of_a_batch_leave_the_call_ends_and_the_last_waits_for_that(context, clock):
    context.engine.gate.clear()
    tasks = drawing(context, *"abcd")
    await inside(context)
    for task in tasks:
        await cancelled(task)
    assert not context.engine.inside.is_set()
    context.engine.gate.set()
    await (await lone(context, clock, prompt="next"))
    assert [len(prompts) for prompts in context.engine.calls] == [4, 1]


async def test_who_left_or_ran_out_of_time_in_the_bucket_never_reaches_the_engine(context, clock):
    first, (gone, late, stays) = await waiting_behind(context, clock, *"abc", timeout_s=20)
    await cancelled(gone)
    await clock.pass_by(20)
    with pytest.raises(JobTimeout):
        await late
    with pytest.raises(JobTimeout):
        await stays
    follower = await lone(context, clock, prompt="d")
    context.engine.gate.set()
    await asyncio.gather(first, follower)
    assert context.engine.calls == [["first"], ["d"]]


async def test_memory_that_runs_out_splits_the_batch_and_the_next_one_is_smaller(context):
    context.engine.memory = 2
    answers = await asyncio.gather(*drawing(context, *"abcd"))
    assert [answer["seed"] for answer in answers] == [ord(prompt) for prompt in "abcd"]
    assert [len(prompts) for prompts in context.engine.calls] == [4, 2, 2]
    await asyncio.gather(*drawing(context, *"efgh"))
    assert [len(prompts) for prompts in context.engine.calls[3:]] == [2, 2]


async def test_memory_that_suffices_for_one_job_only_leaves_the_other_its_error(context):
    context.engine.memory = 1
    small, large = (
        asyncio.create_task(context.draw(prompt="a")),
        asyncio.create_task(context.draw(prompt="b", num_images=3)),
    )
    assert (await small)["timings"]["batch_size"] == 1
    with pytest.raises(OutOfMemory):
        await large


async def test_what_does_not_fit_into_one_call_is_drawn_in_several(context, clock):
    first, tasks = await waiting_behind(context, clock, *"abc")
    context.engine.takes, context.engine.load_seconds = 1, 0.1
    await clock.pass_by(WAIT_S)
    context.engine.gate.set()
    await first
    answers = await asyncio.gather(*tasks)
    assert sorted(context.engine.calls[1:]) == [["a"], ["b"], ["c"]]
    assert [answer["timings"]["batch_size"] for answer in answers] == [1, 1, 1]
    waited = sorted(answer["timings"]["queue_s"] for answer in answers)
    assert waited[1] >= WAIT_S + 0.1  # each until its own call began
    assert waited[2] >= WAIT_S + 0.2


@pytest.mark.parametrize(("where", "failing"), [("spoiled", "b"), ("poison", "b"), ("poison", "ac")])
async def test_a_job_that_fails_fails_alone(context, clock, where, failing):
    error = InvalidOutput("NaN.") if where == "spoiled" else EngineFailure("No.")
    getattr(context.engine, where).update(dict.fromkeys(failing, error))
    got = await asyncio.gather(*drawing(context, *"abcd"), return_exceptions=True)
    for prompt, answer in zip("abcd", got, strict=True):
        assert isinstance(answer, EngineFailure) if prompt in failing else answer["seed"] == ord(prompt)
    together, *later = context.engine.calls
    assert len(together) == 4
    if where == "spoiled":
        assert not later
    elif failing == "b":  # each alone until one has failed; the others share a call again
        tried = 1 + together.index("b")
        assert later == [[prompt] for prompt in together[:tried]] + [together[tried:]] * (tried < 4)


async def test_a_model_that_cannot_be_loaded_is_tried_once_for_all(context):
    context.engine.failures = [LoadFailed("No.")]
    got = await asyncio.gather(*drawing(context, *"abcd"), return_exceptions=True)
    assert [type(error) for error in got] == [LoadFailed] * 4
    assert len(context.engine.calls) == 1


async def test_a_lost_device_is_told_to_all_of_the_batch_and_all_who_wait(context, clock):
    first, tasks = await waiting_behind(context, clock, *"abcdef")
    context.engine.failures = [DeviceLost("Gone.")]
    context.engine.gate.set()
    got = await asyncio.wait_for(asyncio.gather(first, *tasks, return_exceptions=True), LIMIT_S)
    assert [type(error) for error in got] == [DeviceLost] * 7


async def test_a_batch_that_hangs_costs_the_device_when_the_last_of_it_has_to_stop(context, monkeypatch, clock):
    monkeypatch.setattr(batching, "STUCK_GRACE_S", 0.2)
    context.engine.alive.clear()
    short, long = drawing(context, "a", timeout_s=20) + drawing(context, "b", timeout_s=60, num_images=3)
    try:
        await inside(context)
        await clock.pass_by(20)
        with pytest.raises(JobTimeout):  # the other may still get its image
            await short
        await clock.pass_by(40)
        with pytest.raises(JobTimeout):
            await long
        await lost(context)
    finally:
        context.engine.alive.set()


async def test_an_engine_that_breaks_its_word_is_an_error_for_each(context, clock):
    context.engine.failures = [ZeroDivisionError()]
    got = await asyncio.wait_for(asyncio.gather(*drawing(context, *"abcd"), return_exceptions=True), LIMIT_S)
    assert [type(error) for error in got] == [ZeroDivisionError] * 4
    assert (await (await lone(context, clock)))["image"]


async def test_the_jobs_of_a_call_share_its_seconds_by_their_pixels(context):
    small, large = await asyncio.gather(context.draw(prompt="a"), context.draw(prompt="b", num_images=3))
    assert small["timings"]["batch_size"] == 2
    seconds = [answer["usage"]["gpu_seconds"] for answer in (small, large)]
    assert seconds == [pytest.approx(0.75 * part, abs=1e-4) for part in (0.25, 0.75)]  # load 0.25 and inference 0.5
    assert large["usage"]["pixel_steps"] == 3 * small["usage"]["pixel_steps"]


async def test_a_resident_models_queue_lets_others_in(tmp_path):
    """A stream for the loaded model never stops; a job for another one is drawn all the same."""
    context = make_context(tmp_path, FakeEngine(steps=1), batch_size=2, batch_timeout_ms=1)
    context.engine.load_s = 0.05
    await context.draw(model="any")
    await context.draw()
    stop = asyncio.Event()

    async def stream():
        while not stop.is_set():
            await context.draw()

    streams = [asyncio.create_task(stream()) for _ in range(6)]
    await asyncio.sleep(0.1)
    other = await asyncio.wait_for(context.draw(prompt="other", model="any"), LIMIT_S)
    stop.set()
    await asyncio.gather(*streams)
    assert other["prompt"] == "other"


async def test_two_hundred_at_once_are_each_answered_once(tmp_path):
    """Sizes, models, counts and doomed ones mixed; some callers leave."""
    context = make_context(tmp_path, batch_size=4, batch_timeout_ms=2_000, max_resident_models=2)
    context.engine.spoiled["doomed"] = InvalidOutput("NaN.")
    sizes, models = [64, 128, 192], ["tiny", "any"]

    async def one(index):
        fields = {"width": sizes[index % 3], "model": models[index % 2], "num_images": 1 + index % 3 // 2}
        prompt = "doomed" if index % 17 == 0 else f"{index}"
        task = asyncio.create_task(context.draw(prompt=prompt, seed=index, **fields))
        if index % 13 == 0:
            await asyncio.sleep(0.02 * (index % 5))
            task.cancel()
        try:
            answer = await task
        except asyncio.CancelledError:
            return "left"
        except InvalidOutput:
            return "doomed"
        assert (answer["seed"], answer["width"], answer["model"]) == (index, fields["width"], fields["model"])
        assert len(files_of(answer)) == fields["num_images"]
        return answer["timings"]["batch_size"]

    got = await asyncio.wait_for(asyncio.gather(*(one(index) for index in range(200))), 120)
    assert len(got) == 200
    assert all(found == "doomed" for index, found in enumerate(got) if index % 17 == 0 and index % 13)
    assert {found for index, found in enumerate(got) if index % 17 and index % 13} <= {1, 2, 3, 4}
    assert context.engine.overlaps == 0
    assert len(context.engine.calls) < 120
    seen = [job.id for job in context.engine.ran]
    assert len(seen) == len(set(seen))
