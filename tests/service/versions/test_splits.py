"""Splits: who gets which version, what the books say of it, and the end of a split by itself."""

import asyncio
import json

import pytest

from tests.service.versions.shelf import another, two_versions, write_steps
from tests.waiting import until_true
from worker.catalog.versions import replay
from worker.core.errors import InvalidRequest, LoadFailed, WorkerError
from worker.service.usage.log import read_usage
from worker.service.versions.changes import By
from worker.service.versions.intervals import mean_interval, percentile, share_interval

SPLIT = {"action": "split", "model": "tiny", "arms": {"stable": 90, "candidate": 10}}


def usage(context):
    context.worker.usage_log.close()
    return [line for line in read_usage(context.worker.settings.usage_dir) if line["action"] == "generate"]


def check_books(context, lines):
    """Check that the history, replayed as far as each job had read it, says the version that served the job."""
    changes = context.worker.versions.actions.versions.history.read()
    for line in lines:
        model = replay(changes[: line["changes"]])["tiny"]
        assert model.find(line["chosen_by"]).name == line["version"]
        if line["arm"] is None:
            assert model.split is None or line["chosen_by"] != "stable"
        else:
            assert line["arm"] in model.split.arms


async def test_the_same_caller_gets_the_same_version_and_a_sticky_field_comes_before_the_caller(tmp_path):
    from tests.asking import perform

    context = await two_versions(tmp_path)
    other = another(tmp_path)
    await context.ask(**SPLIT | {"arms": {"stable": 50, "candidate": 50}})
    arms = {}
    for name in (f"ann {number}" for number in range(12)):
        job = {"prompt": "x"}
        answers = [
            await perform(each.worker, job, f"{name} {index}", caller=name)
            for index, each in enumerate((context, other))
        ]
        answers += [await context.draw(sticky=name)]
        assert len({(answer["version"], answer["arm"]) for answer in answers}) == 1
        arms[name] = answers[0]["arm"]
    assert set(arms.values()) == {"stable", "candidate"}
    assert (await context.draw(model="tiny@v2", sticky="anybody"))["arm"] is None
    assert "sticky" not in answers[0]["reproduce"]["input"]


async def test_the_split_of_models_yaml_is_taken_over_once_and_one_that_ended_stays_ended(tmp_path, caplog):
    context = await two_versions(tmp_path)
    write_steps(tmp_path, 7, split={"v1": 1, "candidate": 1_000_000})
    context.worker.reload()
    context.worker.reload()
    another(tmp_path)
    assert (await context.draw(sticky="a"))["arm"] == "candidate"
    changes = (await context.ask(action="history", model="tiny"))["changes"]
    assert [(change["kind"], change["who"]) for change in changes].count(("split", "models.yaml")) == 1
    await context.ask(action="promote", model="tiny", version="v1")
    context.worker.reload()
    assert (await context.draw(sticky="a"))["version"] == "v1"
    assert "the split of tiny in models.yaml has ended" in caplog.text
    write_steps(tmp_path, 7, split={})
    context.worker.reload()
    assert (await context.ask(action="versions", model="tiny"))["models"][0]["arms"] == {}


async def test_a_split_in_models_yaml_has_to_name_versions(tmp_path):
    from tests.fakes.engine import make_context
    from worker.app.registry import build_registry
    from worker.catalog.registry import RegistryError

    context = make_context(tmp_path)
    for split in ({"best": 1}, {"v1": 0}):
        write_steps(tmp_path, 5, split=split)
        with pytest.raises(RegistryError, match="split"):
            build_registry(context.worker.settings)


async def test_a_candidate_that_fails_is_halted_within_twenty_of_its_jobs(tmp_path, caplog):
    context = await two_versions(tmp_path)
    other = another(tmp_path)
    await context.ask(**SPLIT | {"arms": {"stable": 50, "candidate": 50}})
    context.engine.fails = lambda job: LoadFailed("no") if job.call.spec.version == "v2" else None
    failed = 0
    for number in range(200):
        try:
            await context.draw(sticky=str(number))
        except WorkerError:
            failed += 1
        if not context.worker.versions.actions.versions.of("tiny").split:
            break
    assert 5 <= failed <= 20
    changes = (await other.ask(action="history", model="tiny"))["changes"]
    assert (changes[0]["halted"], changes[0]["who"]) == ("candidate", "halt rule")
    assert changes[0]["why"].startswith("candidate failed ")
    assert {(await each.draw(sticky=str(number)))["version"] for number in range(30) for each in (context, other)} == {
        "v1"
    }
    assert "the split of tiny is ended" in caplog.text


async def test_what_fails_everywhere_halts_nothing(tmp_path):
    context = await two_versions(tmp_path)
    await context.ask(**SPLIT | {"arms": {"stable": 50, "candidate": 50}})
    context.engine.fails = lambda job: LoadFailed("no")
    for number in range(40):
        with pytest.raises(WorkerError):
            await context.draw(sticky=str(number))
    context.worker.versions.halting.close()
    assert context.worker.versions.actions.versions.of("tiny").split is not None


async def test_what_a_caller_did_wrong_counts_for_no_arm(tmp_path):
    context = await two_versions(tmp_path)
    await context.ask(**SPLIT | {"arms": {"stable": 50, "candidate": 50}})
    context.engine.fails = lambda job: InvalidRequest("no") if job.call.spec.version == "v2" else None
    refused = 0
    for number in range(30):
        try:
            await context.draw(sticky=str(number))
        except InvalidRequest:
            refused += 1
    assert refused > 5
    context.worker.versions.halting.close()
    assert context.worker.versions.actions.versions.of("tiny").split is not None


async def test_a_split_that_came_since_is_not_ended_by_the_jobs_of_the_one_before(tmp_path):
    context = await two_versions(tmp_path)
    changes, by = context.worker.versions.actions.changes, By("halt rule", "it failed")
    await context.ask(**SPLIT)
    assert changes.halt("tiny", "candidate", {"stable": 50.0, "candidate": 50.0}, by) is False
    assert changes.halt("tiny", "candidate", {"stable": 90.0, "candidate": 10.0}, by) is True
    assert changes.halt("tiny", "candidate", {"stable": 90.0, "candidate": 10.0}, by) is False
    history = (await context.ask(action="history", model="tiny"))["changes"]
    assert [change["halted"] for change in history if change["kind"] == "split"] == ["candidate", None]


async def test_a_slower_candidate_is_halted_and_one_may_allow_it(tmp_path):
    context = await two_versions(tmp_path)
    context.engine.seconds_of = lambda job: 3.0 if job.call.spec.version == "v2" else 1.0
    asked = SPLIT | {"arms": {"stable": 50, "candidate": 50}}
    await context.ask(**asked | {"halt": {"slower": 4}})
    for number in range(40):
        await context.draw(sticky=str(number))
    assert context.worker.versions.actions.versions.of("tiny").split is not None
    await context.ask(**asked | {"halt": {"slower": 2}})
    for number in range(40):
        await context.draw(sticky=str(number))
    await until_true(lambda: context.worker.versions.actions.versions.of("tiny").split is None)
    assert " took 3 s " in (await context.ask(action="history", model="tiny"))["changes"][0]["why"]


@pytest.mark.slow
async def test_of_a_thousand_jobs_each_arm_has_its_share_and_the_books_agree(tmp_path):
    context = await two_versions(tmp_path)
    await context.ask(**SPLIT)
    answers = []
    for begin in range(0, 1_000, 20):
        answers += await asyncio.gather(*(context.draw(sticky=f"caller {begin + index}") for index in range(20)))
        if begin == 500:
            await context.ask(action="rollback", model="tiny", version="v1")
            await context.ask(**SPLIT)
    candidate = sum(answer["arm"] == "candidate" for answer in answers)
    assert abs(candidate - 100) <= 4 * (1_000 * 0.1 * 0.9) ** 0.5
    again = [(await context.draw(sticky=f"caller {number}"))["version"] for number in range(100)]
    assert again == [answer["version"] for answer in answers[:100]]
    report = await context.ask(action="report", model="tiny")
    lines = usage(context)
    check_books(context, lines)
    assert len(lines) == 1_100
    text = context.worker.metrics.exposition().decode()
    for version, arm in (("v1", "stable"), ("v2", "candidate")):
        count = sum((line["version"], line["arm"]) == (version, arm) for line in lines)
        label = f'{{arm="{arm}",model="tiny",status="ok",version="{version}"}}'
        assert f"imgworker_version_requests_total{label} {float(count)}" in text
        assert count == sum((each["version"], each["arm"]) == (version, arm) for each in answers) + again.count(version)
    assert {row["arm"] for row in report["versions"]} == {"stable", "candidate"}


async def test_the_books_agree_through_every_kind_of_change(tmp_path):
    context = await two_versions(tmp_path)
    for change in (
        SPLIT,
        {"action": "promote", "model": "tiny", "version": "candidate"},
        {"action": "rollback", "model": "tiny"},
        SPLIT | {"arms": {"v1": 1, "v2": 1}},
        SPLIT | {"arms": {}},
    ):
        await asyncio.gather(
            context.ask(**change),
            *(
                context.draw(sticky=str(number), model=name)
                for number in range(4)
                for name in ("tiny", "tiny@candidate")
            ),
        )
    lines = usage(context)
    assert len(lines) == 40
    check_books(context, lines)


def test_intervals_are_the_usual_ones():
    assert share_interval(0, 0) is None
    some = share_interval(5, 50)
    assert (round(some.value, 3), round(some.low, 4), round(some.high, 4)) == (0.1, 0.0435, 0.2136)  # Wilson's
    none = share_interval(0, 20)
    assert (none.low, round(none.high, 4)) == (0.0, 0.1611)
    mean = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (mean.value, round(mean.low, 3), round(mean.high, 3)) == (2.5, 1.235, 3.765)
    assert (percentile([1, 2, 3, 4], 50), percentile([1, 2, 3, 4], 95), percentile([], 50)) == (2, 4, None)
    assert json.dumps(percentile([7], 95)) == "7"
