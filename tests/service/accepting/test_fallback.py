"""When a model cannot be had: the registered stand-in, or a similar model when the caller allows it, and said so."""

import json

import pytest

from tests.fakes.engine import make_context
from worker.core.errors import DeviceLost, LoadFailed, OutOfMemory, WorkerError


@pytest.fixture
def models(tmp_path):
    """A context whose registry has a model that only the Hub has, and what may stand in for it."""

    def build(**entries):
        context = make_context(tmp_path / "shelf")
        registry = json.loads((tmp_path / "shelf/models.yaml").read_text())
        registry["models"] |= entries
        path = tmp_path / "shelf/with.yaml"
        path.write_text(json.dumps(registry))
        return make_context(tmp_path / "shelf", models_yaml=path, **{"max_images": context.worker.settings.max_images})

    return build


async def test_a_registered_fallback_draws_and_the_answer_says_so(models):
    context = models(**{"org/far": {"architecture": "sdxl", "fallback": "tiny"}})
    answer = await context.draw(model="org/far")
    assert answer["model"] == "tiny"
    assert answer["warnings"][0].startswith("org/far could not be had (source_unavailable), so tiny drew this instead")
    assert answer["image"]


async def test_without_one_the_failure_is_the_answer(models):
    context = models(**{"org/far": {"architecture": "sdxl"}})
    with pytest.raises(WorkerError) as failure:
        await context.draw(model="org/far")
    assert failure.value.code == "source_unavailable"
    assert context.engine.ran == []


SD1 = {"source": "file:models/sd1", "architecture": "sd1"}


async def test_a_caller_can_allow_a_model_of_the_same_family(models):
    context = models(
        **{"org/far": {"architecture": "sd1"}, "small-sd1": SD1 | {"limits": {"max_side": 256}}, "near": SD1}
    )
    answer = await context.draw(model="org/far", fallback=True)
    assert answer["model"] == "near"  # the other one cannot do 512 x 512
    assert "could not be had" in answer["warnings"][0]
    assert (await context.draw(model="org/far", fallback=True, width=256, height=128))["model"] == "small-sd1"


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("org/far-xl", {}),  # the default model is of another family
        ("org/far-xl", {"width": 64, "height": 64}),
        ("org/far", {"width": 1024, "height": 1024}),  # and the one of its own family is too small
        ("other/model", {}),  # of a family that nobody knows
    ],
)
async def test_no_model_of_another_family_or_too_small_stands_in(models, model, fields):
    entries = {
        "org/far": {"architecture": "sd1"},
        "org/far-xl": {"architecture": "sdxl"},
        "near": SD1 | {"limits": {"max_side": 512}},
    }
    context = models(**entries)
    with pytest.raises(WorkerError) as failure:
        await context.draw(model=model, fallback=True, **fields)
    assert failure.value.code in ("source_unavailable", "model_not_found")
    assert context.engine.ran == []


@pytest.mark.parametrize("failure", [LoadFailed("no"), OutOfMemory("no")])
async def test_what_fails_on_the_device_counts_too(models, failure):
    context = models(weak={"source": "file:models/sd1", "fallback": "tiny"})
    context.engine.failures.append(failure)
    answer = await context.draw(model="weak")
    assert answer["model"] == "tiny"
    assert [job.call.spec.id for job in context.engine.ran] == ["weak", "tiny"]


async def test_a_request_that_is_wrong_in_itself_is_refused(models):
    context = models(weak={"source": "file:models/sd1", "fallback": "tiny"})
    with pytest.raises(WorkerError) as failure:
        await context.draw(model="weak", width=7)
    assert failure.value.code == "parameter_out_of_range"
    assert context.engine.ran == []


async def test_a_lost_device_is_no_reason_to_try_another_model(models):
    context = models(weak={"source": "file:models/sd1", "fallback": "tiny"})
    context.engine.failures.append(DeviceLost("gone"))
    with pytest.raises(DeviceLost):
        await context.draw(model="weak")
    assert len(context.engine.ran) == 1


async def test_a_stand_in_that_cannot_be_had_either_ends_the_job(models):
    far = {"architecture": "sdxl", "fallback": "org/farther"}
    context = models(**{"org/far": far, "org/farther": {"architecture": "sdxl", "fallback": "org/far"}})
    with pytest.raises(WorkerError) as failure:
        await context.draw(model="org/far")
    assert failure.value.code == "source_unavailable"
    assert context.engine.ran == []


@pytest.mark.parametrize(("fallback", "said"), [("nope", "did you mean"), ("weak", "its own fallback")])
def test_a_fallback_has_to_be_another_registered_model(models, fallback, said):
    from worker.catalog.registry import RegistryError

    with pytest.raises(RegistryError, match=said):
        models(weak={"source": "file:models/sd1", "fallback": fallback})
