"""The operator's matrix at the door of a job and in a plan, and what worked here, which a plan tells too."""

import json

import pytest

from tests.catalog.corpus import sparse_file, stored
from tests.fakes.engine import ServerContext, make_context
from tests.waiting import until_true
from worker.core.errors import LoadFailed, WorkerError


def _context(root, *rows, **changes) -> ServerContext:
    make_context(root)  # writes the shelf
    (root / "compatibility.yaml").write_text(json.dumps({"rows": rows}))
    return make_context(root, **changes)


async def test_what_is_known_to_be_broken_is_refused_before_anything_is_loaded(tmp_path):
    row = {"model": "sd1", "is": "broken", "because": "Its output is grey."}
    context = _context(tmp_path, {"model": "any", "is": "works"}, row)
    with pytest.raises(WorkerError) as failure:
        await context.draw(model="small")  # an alias of a model of that family
    assert (failure.value.code, failure.value.field) == ("unsupported_model", "model")
    assert failure.value.message == "tiny does not work, by compatibility.yaml:1: Its output is grey."
    assert context.engine.ran == []
    assert (await context.draw(model="any"))["image"], "the row above is an exception"


async def test_a_row_that_warns_lets_the_job_through_and_says_so(tmp_path):
    need = {"model": "tiny", "is": "needs", "needs": {"parameters": {"num_inference_steps": 4}}, "then": "warn"}
    context = _context(tmp_path, need)
    answer = await context.draw(num_inference_steps=7)
    assert [text for text in answer["warnings"] if "needs num_inference_steps 4" in text]
    assert not (await context.draw(num_inference_steps=4))["warnings"]


async def test_a_combination_is_refused_in_the_adapters_field(tmp_path):
    context = _context(tmp_path, {"model": "tiny", "with": "org/style", "is": "broken"}, allow_unregistered_models=True)
    with pytest.raises(WorkerError) as failure:
        await context.accept(loras=["org/style#a.safetensors"])
    assert (failure.value.code, failure.value.field) == ("incompatible_adapter", "loras")
    assert (await context.accept(loras=["org/other"])).adapters


async def test_a_row_about_the_device_counts_on_that_device(tmp_path):
    context = _context(tmp_path, {"model": "*", "device": "fake gpu", "is": "broken"})
    with pytest.raises(WorkerError):
        await context.draw()
    other = _context(tmp_path / "other", {"model": "*", "device": "RTX 3090", "is": "broken"})
    assert (await other.draw())["image"]


async def test_a_plan_tells_what_is_known_and_what_worked_here(tmp_path):
    context = _context(tmp_path, {"model": "sdxl", "is": "works", "because": "Tried by hand."})
    path = sparse_file(tmp_path / "models/sdxl.safetensors", stored("sdxl"))
    plan = await context.ask(action="plan", model=f"file:{path}")
    assert plan["fits"] is True
    assert "works, by compatibility.yaml:1: Tried by hand." in plan["known"][0]
    (tmp_path / "compatibility.yaml").write_text("rows: [{model: sdxl, is: needs, needs: {vram_gb: 80}}]")
    context.worker.reload()
    plan = await context.ask(action="plan", model=f"file:{path}")
    assert plan["fits"] is False
    assert "needs 80 GB of memory, and Fake GPU has 24.0 GiB" in plan["reason"]


async def test_results_are_remembered_on_the_volume_and_a_strangers_model_is_not(tmp_path):
    context = make_context(tmp_path, allow_unregistered_models=True)
    await context.draw()
    context.engine.failures.append(LoadFailed("no"))
    with pytest.raises(WorkerError):
        await context.draw(model="any")
    folder = tmp_path / "models/sd1"
    await context.draw(model=f"file:{folder}")
    notes = tmp_path / "volume/state/worked"
    await until_true(lambda: len([*notes.rglob("*.json")]) == 2)
    again = make_context(tmp_path)  # another worker of the volume
    (worked,) = (await again.ask(action="plan", model="tiny"))["known"]
    assert worked.startswith("tiny worked here on Fake GPU, last on 20")
    (failed,) = (await again.ask(action="plan", model="any"))["known"]
    assert failed.startswith("any failed here on Fake GPU (load_failed), last on 20")
    assert len([*notes.rglob("*.json")]) == 2


def test_a_mistake_stops_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"compatibility\.yaml:1: unknown key"):
        _context(tmp_path, {"model": "tiny", "is": "broken", "why": "x"})
