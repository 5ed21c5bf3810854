"""Golden prompts: today's version beside another one, only where an operator asks, and nothing of it stays behind."""

import base64
import json

import pytest

from tests.asking import perform
from tests.fakes.engine import make_context
from tests.fakes.hub import FakeHub
from tests.service.discovery.pages import repository
from tests.service.versions.shelf import two_versions, write_steps
from tests.service.versions.test_pairs import by_steps
from worker.core.discovery import Update, Updates
from worker.core.errors import (
    AccessDenied,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    SourceUnavailable,
    UnknownParameter,
    UnsupportedModel,
)
from worker.media.decoding import decode_image
from worker.service.discovery.golden import USUAL, golden_of
from worker.service.limits.key_rights import KeyRight
from worker.service.usage.log import read_usage

PROMPTS = {"a red apple": 3, "a green frog": 4}


@pytest.fixture
def hub():
    with FakeHub() as server:
        yield server


async def test_two_versions_of_a_model_are_compared_prompt_by_prompt(tmp_path):
    context = await two_versions(tmp_path)
    write_steps(tmp_path, 7, golden=PROMPTS)
    context.worker.reload()
    context.engine.pixels = by_steps
    context.engine.seconds_of = lambda job: job.params["num_inference_steps"] / 10
    answer = await context.ask("golden-job", action="golden", model="tiny", version="candidate")
    assert (answer["old"], answer["new"]) == ("tiny@v1", "tiny@candidate")
    assert [(each["prompt"], each["seed"]) for each in answer["prompts"]] == [*PROMPTS.items()]
    for each in answer["prompts"]:
        assert each["distance"] == pytest.approx(20 / 255 / 3**0.5, abs=1e-6)
        assert (each["old_s"], each["new_s"]) == (0.5, 0.7)
        raster = decode_image(base64.b64decode(each["image"])).raster
        assert (raster.width, raster.height) == (64 + 8 + 64, 64)
        left, right = (raster.data[3 * at + 1] for at in (0, 135))
        assert abs(left - 50) < 4 and abs(right - 70) < 4  # today's version on the left
    assert answer["distance"]["value"] == pytest.approx(20 / 255 / 3**0.5, abs=1e-6)
    assert answer["slower_s"]["value"] == pytest.approx(0.2)
    ran = [(job.call.spec.version, job.prompt, job.seeds) for job in context.engine.ran]
    assert ran == [(version, prompt, (seed,)) for version in ("v1", "v2") for prompt, seed in PROMPTS.items()]
    context.worker.usage_log.close()
    (line,) = [line for line in read_usage(context.worker.settings.usage_dir) if line["action"] == "golden"]
    assert (line["job_id"], line["model"], line["images"], line["outcome"]) == ("golden-job", "tiny", 4, "ok")
    assert "version" not in line  # it is of both
    assert "version_requests_total{" not in context.worker.metrics.exposition().decode()


async def test_the_newest_version_is_fetched_and_compared_and_nothing_is_served_by_it(tmp_path, hub):
    old = hub.add_repo("org/xl", repository(tmp_path / "xl", "StableDiffusionXLPipeline"))
    folder = repository(tmp_path / "newer", "StableDiffusionXLPipeline")
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"}))
    new = hub.add_repo("org/xl", folder)
    context = make_context(tmp_path / "shelf", OFFLINE=False, allow_private_urls=True, hf_endpoint=hub.endpoint)
    path = context.worker.settings.models_yaml
    entry = {"source": f"org/xl@{old}", "golden": PROMPTS, "defaults": {"num_inference_steps": 6}}
    path.write_text(json.dumps({"models": {"xl": entry, "tiny": {"source": "file:models/sd1"}}}))
    context.worker.reload()
    with pytest.raises(InvalidRequest, match="nothing is newer than what tiny is served as"):
        await context.ask(action="golden", model="tiny")
    assert context.engine.ran == []
    answer = await context.ask(action="golden", model="xl")
    assert (answer["old"], answer["new"]) == (f"org/xl@{old}", f"org/xl@{new}")
    revisions = [job.call.spec.source.revision for job in context.engine.ran]
    assert revisions == [old, old, new, new]
    assert {job.params["num_inference_steps"] for job in context.engine.ran} == {6}  # all else is as the entry has it
    assert (await context.ask(action="versions")) == {"models": []}
    lent = context.engine.ran[-1].call.spec.served_name
    assert lent.startswith("xl@")
    with pytest.raises(InvalidRequest):
        await context.draw(model=lent)  # the name was for this comparison
    await context.draw(model="xl")
    assert context.engine.ran[-1].call.spec.source.revision == old


async def test_a_failure_of_the_newer_one_is_the_answer_and_its_name_is_gone(tmp_path):
    context = await two_versions(tmp_path)
    context.engine.fails = lambda job: LoadFailed("no") if job.call.spec.version == "v2" else None
    with pytest.raises(LoadFailed):
        await context.ask(action="golden", model="tiny", version="v2")
    resolver = context.worker.operations.generation.acceptor.resolver
    assert resolver._lent == {}
    with pytest.raises(RuntimeError), resolver.lent(context.worker.registry.models["tiny"]):
        raise RuntimeError
    assert resolver._lent == {}


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model": "nonesuch"}, ModelNotFound, "is not in models.yaml"),
        ({}, InvalidRequest, "model"),
        ({"model": "tiny", "version": "main"}, InvalidRequest, "version must be v1"),
        ({"model": "tiny", "version": "v9"}, ModelNotFound, "no such version"),
        ({"model": "tiny", "prompt": "x"}, UnknownParameter, "it takes model, version"),
    ],
)
async def test_a_wrong_comparison_is_refused_before_anything_is_loaded(tmp_path, fields, error, words):
    context = await two_versions(tmp_path)
    with pytest.raises(error, match=words):
        await context.ask(action="golden", **fields)
    assert context.engine.ran == []


@pytest.mark.parametrize(
    ("updates", "error", "words"),
    [
        (Updates((Update("tiny", "old", "new", 1, 1, obstacle="it is gated"),)), UnsupportedModel, "it is gated"),
        (Updates((), failed=(("tiny", "it is gone"),)), SourceUnavailable, "it is gone"),
        (Updates((), unseen=1), SourceUnavailable, "in time"),
    ],
)
async def test_a_newer_one_that_cannot_run_or_be_had_is_not_fetched(tmp_path, updates, error, words, monkeypatch):
    context = make_context(tmp_path)

    async def told(model, caller):
        return updates

    monkeypatch.setattr(context.worker.operations.discovery, "updates", told)
    with pytest.raises(error, match=words):
        await context.ask(action="golden", model="tiny")
    assert context.engine.ran == []


async def test_a_key_compares_no_model_that_it_may_not_use(tmp_path):
    context = await two_versions(tmp_path)
    rights = context.worker.operations.generation.admission.rights
    rights.replace({"ann": KeyRight(models=("any",))}, several=True)
    with pytest.raises(AccessDenied):
        await perform(context.worker, {"action": "golden", "model": "tiny", "version": "v2"}, caller="ann")
    assert context.engine.ran == []


def test_golden_prompts_are_the_models_own_else_what_it_knows_else_the_usual_ones(tmp_path):
    entry = make_context(tmp_path).worker.registry.models["tiny"]
    assert golden_of(entry) is USUAL
    small = entry.model_copy(update={"subjects": tuple("abcdef")})
    assert golden_of(small) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert golden_of(small.model_copy(update={"golden": PROMPTS})) == PROMPTS
