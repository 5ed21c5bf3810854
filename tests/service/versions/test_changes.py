"""Changes of what is served: each takes hold with its answer, on every worker, and is refused if it could not."""

import asyncio
import json

import pytest

from tests.service.versions.shelf import another, two_versions, write_steps
from tests.waiting import until_true
from worker.core.errors import CorruptFile, InvalidRequest, ModelNotFound, UnknownParameter


async def steps(context, **fields):
    answer = await context.draw(**fields)
    return answer.get("version"), answer["num_inference_steps"]


async def test_a_model_without_versions_is_served_as_before_and_has_none_in_its_answer(tmp_path):
    from tests.fakes.engine import make_context

    context = make_context(tmp_path)
    answer = await context.draw()
    assert "version" not in answer
    assert answer["reproduce"]["input"]["model"] == "tiny"
    assert await context.ask(action="versions") == {"models": []}
    with pytest.raises(ModelNotFound, match="no versions yet"):
        await context.draw(model="tiny@v1")


async def test_each_version_is_served_under_its_name_and_its_aliases(tmp_path):
    context = await two_versions(tmp_path)
    for model in ("tiny", "small", "tiny@v1", "tiny@stable"):
        assert await steps(context, model=model) == ("v1", 5)
    for model in ("tiny@v2", "small@candidate"):
        assert await steps(context, model=model) == ("v2", 7)
    answer = await context.draw(model="tiny@candidate")
    assert answer["model"] == "tiny"
    assert answer["reproduce"]["input"]["model"] == "tiny@v2"
    again = await context.ask(**answer["reproduce"]["input"])
    assert (again["version"], again["image"]) == (answer["version"], answer["image"])
    with pytest.raises(ModelNotFound, match=r"name one of v1, v2, or @stable, @candidate"):
        await context.draw(model="tiny@v3")
    schema = await context.ask(action="schema", model="tiny@candidate")
    assert schema["properties"]["num_inference_steps"]["default"] == 7


async def test_an_answered_change_holds_for_every_worker_and_nothing_is_read_anew_for_it(tmp_path):
    context = await two_versions(tmp_path)
    other = another(tmp_path)
    assert (await steps(context), await steps(other)) == (("v1", 5), ("v1", 5))
    await context.ask(action="promote", model="tiny", version="candidate", why="better")
    assert (await steps(context), await steps(other)) == (("v2", 7), ("v2", 7))
    told = await other.ask(action="rollback", model="small", why="worse")
    assert told["models"][0]["versions"][0]["aliases"] == ["stable"]
    assert (await steps(context), await steps(other)) == (("v1", 5), ("v1", 5))
    history = await context.ask(action="history", model="tiny")
    said = [(change["kind"], change.get("from"), change.get("to"), change["why"]) for change in history["changes"]]
    assert said == [
        ("alias", "v2", "v1", "worse"),
        ("alias", "v1", "v2", "better"),
        ("alias", None, "v2", ""),
        ("version", None, None, ""),
        ("alias", None, "v1", "the first"),
        ("version", None, None, "the first"),
    ]


async def test_what_served_at_a_time_is_answered(tmp_path):
    context = await two_versions(tmp_path)
    await context.ask(action="promote", model="tiny", version="candidate")
    changes = (await context.ask(action="history", model="tiny"))["changes"]
    for change, expected in zip(changes, ["v2", "v1", "v1", "v1"], strict=False):
        served = (await context.ask(action="history", model="tiny", at=change["at"]))["served"]["tiny"]
        assert served["version"] == expected
    assert (await context.ask(action="history", model="tiny", at="2001-01-01"))["served"]["tiny"]["version"] is None
    with pytest.raises(InvalidRequest, match="at must be a time"):
        await context.ask(action="history", at="noon")


async def test_a_rollback_that_cannot_be_served_is_refused_before_it_is_made(tmp_path):
    context = await two_versions(tmp_path)
    with pytest.raises(InvalidRequest, match="no version to go back to"):
        await context.ask(action="rollback", model="tiny")
    index = tmp_path / "models/sd1/scheduler/scheduler_config.json"
    index.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    await context.ask(action="promote", model="tiny", version="entry")
    before = (await context.ask(action="history"))["changes"]
    for action, fields in (("rollback", {}), ("promote", {"version": "v1"}), ("split", {"arms": {"v1": 1}})):
        with pytest.raises(CorruptFile, match=r"tiny@v1 cannot be served: scheduler/scheduler_config.json"):
            await context.ask(action=action, model="tiny", **fields)
    assert (await context.ask(action="history"))["changes"] == before
    assert (await steps(context))[0] == "v3"
    with pytest.raises(CorruptFile, match="is not what it was"):  # and what was named is never another's content
        await context.draw(model="tiny@v2")
    assert {job.call.spec.version for job in context.engine.ran} == {"v3"}


async def test_the_history_holds_what_makes_images_and_no_more_of_an_entry(tmp_path):
    from worker.catalog.versions import CONTENT

    context = await two_versions(tmp_path)
    write_steps(tmp_path, 9, description="for nobody", golden={"a secret prompt": 1}, limits={"max_side": 128})
    context.worker.reload()
    await context.ask(action="promote", model="tiny", version="entry")
    *_, line = [
        json.loads(text)
        for text in (tmp_path / "volume/versions/history.jsonl").read_text().splitlines()
        if "spec" in text
    ]
    assert line["content"]["spec"]["defaults"] == {"num_inference_steps": 9}
    assert line["content"]["spec"].keys() <= {"id", *CONTENT}


async def test_an_entry_that_was_changed_is_no_version_until_it_is_promoted_and_the_log_says_so(tmp_path, caplog):
    context = await two_versions(tmp_path)
    write_steps(tmp_path, 9)
    context.worker.reload()
    assert "tiny in models.yaml is none of its versions" in caplog.text
    assert await steps(context) == ("v1", 5)
    assert (await context.ask(action="versions", model="tiny"))["models"][0]["entry"] is None
    await context.ask(action="promote", model="tiny", version="entry")
    assert await steps(context) == ("v3", 9)


async def test_a_candidate_is_recorded_by_what_makes_one(tmp_path):
    from tests.fakes.engine import make_context
    from worker.core.turn import StopSignal
    from worker.service.versions.changes import By

    context = make_context(tmp_path)
    entry = context.worker.registry.models["tiny"]
    better = entry.model_copy(update={"defaults": {"num_inference_steps": 11}})
    name = context.worker.versions.actions.changes.record(
        entry, better, "candidate", By("training", "run 7"), StopSignal()
    )
    assert name == "v2"
    assert (await steps(context), await steps(context, model="tiny@candidate")) == (("v1", 5), ("v2", 11))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"action": "promote", "model": "tiny"}, InvalidRequest, "version is missing"),
        ({"action": "promote", "model": "tiny", "version": "v7"}, ModelNotFound, "no such version"),
        (
            {"action": "promote", "model": "tiny", "version": "v1", "alias": "best"},
            InvalidRequest,
            "stable or candidate",
        ),
        ({"action": "promote", "model": "nothing", "version": "v1"}, ModelNotFound, "is not in models.yaml"),
        ({"action": "rollback", "model": "tiny", "alias": "stable"}, UnknownParameter, "not a field of rollback"),
        ({"action": "rollback"}, InvalidRequest, "model is missing"),
        ({"action": "split", "model": "tiny", "arms": {"best": 1}}, InvalidRequest, "name versions"),
        ({"action": "split", "model": "tiny", "arms": {"stable": -1}}, InvalidRequest, "above 0"),
        ({"action": "split", "model": "tiny", "arms": {"v9": 1}}, ModelNotFound, "no such version"),
        ({"action": "split", "model": "tiny", "arms": {"stable": 1}, "halt": {"jobs": 1}}, InvalidRequest, "halt.jobs"),
        ({"action": "split", "model": "tiny", "halt": {"errors": 0.1, "after": 1}}, UnknownParameter, "halt.after"),
        ({"action": "history", "limit": "many"}, InvalidRequest, "limit must be an integer"),
    ],
)
async def test_a_wrong_change_is_refused_by_name_and_changes_nothing(tmp_path, fields, error, words):
    context = await two_versions(tmp_path)
    before = (await context.ask(action="history"))["changes"]
    with pytest.raises(error, match=words):
        await context.ask(**fields)
    assert (await context.ask(action="history"))["changes"] == before


async def test_a_rollback_under_load_loses_no_job_and_nothing_accepted_after_it_gets_the_old_version(tmp_path):
    context = await two_versions(tmp_path)
    other = another(tmp_path)
    await context.ask(action="promote", model="tiny", version="candidate")
    context.engine.gate.clear()  # the device is busy: jobs wait with the version that they were accepted with
    before = [asyncio.create_task(context.draw(prompt=f"before {number}")) for number in range(8)]
    await until_true(context.engine.inside.is_set)
    await context.ask(action="rollback", model="tiny")
    after = [
        asyncio.create_task(each.draw(prompt=f"after {number}")) for number in range(8) for each in (context, other)
    ]
    context.engine.gate.set()
    assert [answer["version"] for answer in await asyncio.gather(*after)] == ["v1"] * 16
    earlier = [answer["version"] for answer in await asyncio.gather(*before)]
    assert len(earlier) == 8  # whoever was accepted before the answer has the version of that moment
    assert set(earlier) <= {"v1", "v2"}
    for job in context.engine.ran + other.engine.ran:
        assert (job.call.spec.version, job.params["num_inference_steps"]) in (("v1", 5), ("v2", 7))
        assert not job.prompt.startswith("after") or job.call.spec.version == "v1"
