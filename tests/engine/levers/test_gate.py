"""The golden gate: what is wrong, slow or broken never reaches a job, and what passed is used and told."""

import json

import pytest

from tests import builders
from tests.asking import perform
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.errors import DeviceLost, JobCancelled
from worker.core.result import ignore_progress
from worker.core.turn import StopSignal
from worker.engine.engine import DiffusersEngine
from worker.engine.levers import proving
from worker.engine.levers.decisions import Decision, Decisions
from worker.engine.levers.gate import Gate
from worker.engine.levers.row import Lever

PROMPT = "a secret apple"


class Bench:
    """A worker with these levers, and a clock by which a call with `quick` ones takes half of the time."""

    def __init__(self, folder, levers, **settings):
        self.folder = folder
        self.decisions = Decisions(folder / "levers", now=lambda: self.now)
        self.now = 1_000.0
        self.engine = DiffusersEngine("cpu", gate=Gate(levers, self.decisions))
        self.worker = build_worker(
            Settings(
                models_yaml=folder / "models.yaml",
                default_model="flux",
                allowed_model_dirs=[folder.parent.parent],
                volume_dir=folder / "volume",
                device="cpu",
                warm_up=False,
                levers="off",
                **settings,
            ),
            build_engine=lambda: self.engine,
        )

    async def draw(self, **fields):
        fields = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 2} | fields
        return await perform(self.worker, fields, f"job-{id(fields)}")

    def improve(self, stop=None):
        """Try levers until there is nothing left to try; return what was decided, by name."""
        while self.engine.improve(stop or StopSignal(), ignore_progress):
            pass
        return self.decided

    @property
    def decided(self):
        return {report.lever: report.verdict for report in self.engine.levers}

    def files(self):
        return [json.loads(path.read_text()) for path in (self.folder / "levers").glob("*.json")]


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return builders.tiny_flux(tmp_path_factory.mktemp("models") / "flux")


@pytest.fixture
def bench(tmp_path, flux, monkeypatch):
    models = {"flux": {"source": f"file:{flux}", "defaults": {"width": 64, "height": 64}}}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    monkeypatch.setattr(proving, "MOST_TIME", 1e9)  # a busy machine decides nothing here
    return lambda *levers, **settings: Bench(tmp_path, levers, **settings)


def lever(name="mine", tier="exact", on=None, **facts):
    return Lever(name, tier, "a test", applies=lambda ground: True, on=on or (lambda ground: lambda: None), **facts)


def tilting(by):
    """What makes the transformer's output larger by a factor, and right again."""

    def on(ground):
        handle = ground.pipe.transformer.register_forward_hook(lambda module, args, out: (out[0] * by, *out[1:]))
        return handle.remove

    return on


async def test_a_lever_that_makes_a_wrong_image_is_caught_in_its_trial_and_no_job_gets_it(bench):
    bench = bench(lever(on=tilting(1.5)))
    plain = await bench.draw()
    assert bench.improve() == {"mine": "off"}
    (report,) = bench.engine.levers
    assert "dB" in report.reason and report.psnr_db < 40
    again = await bench.draw()
    assert (again["image"], again["levers"]) == (plain["image"], [])


async def test_a_lever_that_passes_is_used_from_then_on_and_told(bench):
    seen = []

    def on(ground):
        seen.append("on")
        return lambda: seen.append("off")

    bench = bench(lever(on=on))
    plain = await bench.draw()
    assert (plain["quality"], plain["levers"], seen) == ("exact", [], [])
    assert bench.improve() == {"mine": "on"}
    seen.clear()
    with_it = await bench.draw(seed=4)
    assert (with_it["quality"], with_it["levers"], seen) == ("exact", ["mine"], ["on", "off"])


async def test_a_lever_that_is_not_faster_is_off(bench, monkeypatch):
    bench = bench(lever())
    monkeypatch.setattr(proving, "MOST_TIME", 0.0)
    await bench.draw()
    assert bench.improve() == {"mine": "off"}
    assert "not faster" in bench.engine.levers[0].reason


@pytest.mark.parametrize(("by", "tier", "verdict"), [(1.1, "exact", "off"), (1.1, "fast", "on")])
async def test_each_tier_has_its_own_bound(bench, by, tier, verdict):
    bench = bench(lever(tier=tier, on=tilting(by)))
    await bench.draw(quality="fast")
    assert bench.improve() == {"mine": verdict}
    exact = await bench.draw()
    assert exact["levers"] == []


async def test_what_changes_the_image_is_tried_once_a_job_allows_it_and_used_for_such_jobs_only(bench):
    bench = bench(lever("small", "high"), lever("large", "fast"))
    plain = await bench.draw()
    assert bench.improve() == {}
    answer = await bench.draw(quality="high")
    assert any("quality high" in text for text in answer["warnings"])
    assert bench.improve() == {"small": "on"}
    await bench.draw(quality="fast")
    assert bench.improve() == {"small": "on", "large": "on"}
    levers = {quality: (await bench.draw(quality=quality))["levers"] for quality in ("exact", "high", "fast")}
    assert levers == {"exact": [], "high": ["small"], "fast": ["small", "large"]}
    assert (await bench.draw())["image"] == plain["image"]


async def test_a_trial_stops_for_a_job_and_is_begun_anew_later(bench):
    bench = bench(lever())
    await bench.draw()
    stop = StopSignal()

    def cancel(progress):
        if progress.phase == "inference" and progress.step == 1:
            stop.cancel()

    with pytest.raises(JobCancelled):
        bench.engine.improve(stop, cancel)
    assert bench.decided == {}
    assert (await bench.draw())["levers"] == []
    assert bench.improve() == {"mine": "on"}


async def test_a_lever_that_fails_is_off_and_its_model_as_before(bench):
    def on(ground):
        raise RuntimeError("no such kernel for " + PROMPT)

    bench = bench(lever(on=on), lever("other"))
    plain = await bench.draw()
    assert bench.improve() == {"mine": "off", "other": "on"}
    assert "RuntimeError" in bench.engine.levers[0].reason and PROMPT not in bench.engine.levers[0].reason
    again = await bench.draw()
    assert (again["image"], again["levers"]) == (plain["image"], ["other"])


async def test_a_lever_that_takes_the_device_along_is_never_tried_again(bench):
    def on(ground):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    first = bench(lever(on=on))
    await first.draw()
    with pytest.raises(DeviceLost):
        first.improve()
    second = bench(lever(on=on))
    await second.draw()
    assert second.improve() == {"mine": "off"}


async def test_a_lever_whose_trial_ended_the_process_is_off_once_no_trial_can_still_run(bench, monkeypatch):
    first = bench(lever())
    await first.draw()
    note = Decisions.note
    monkeypatch.setattr(Decisions, "note", lambda self, *given: note(self, *given) if given[2] else None)
    stop = StopSignal()
    with pytest.raises(JobCancelled):  # as far as the volume knows, it never ended
        first.engine.improve(stop, lambda progress: stop.cancel())
    monkeypatch.undo()
    second = bench(lever())
    await second.draw()
    assert second.improve() == {"mine": "trying"}  # by another worker
    third = bench(lever())
    third.now += 10_000
    await third.draw()
    assert third.improve() == {"mine": "off"}


async def test_decisions_are_shared_on_the_volume_and_hold_no_word_of_a_caller(bench):
    first = bench(lever())
    await first.draw()
    assert first.improve() == {"mine": "on"}
    (file,) = first.files()
    assert (file["version"], file["levers"]["mine"]["verdict"]) == (1, "on")
    assert {"torch", "diffusers", "device", "pipeline"} <= file["for"].keys()
    assert PROMPT not in json.dumps(file)
    second = bench(lever())
    assert (await second.draw())["levers"] == ["mine"]


async def test_a_damaged_file_of_decisions_is_as_none(bench):
    first = bench(lever())
    await first.draw()
    first.improve()
    (path,) = (first.folder / "levers").glob("*.json")
    path.write_text('{"version": 1, "levers": {"mine": {"verdict": "perhaps"}}}')
    second = bench(lever())
    assert (await second.draw())["levers"] == []
    assert second.improve() == {"mine": "on"}


async def test_a_job_that_fails_with_a_lever_is_done_without_and_the_lever_is_off(bench):
    broken = []

    def on(ground):
        if broken:
            raise RuntimeError("not today")
        return lambda: None

    bench = bench(lever(on=on))
    plain = await bench.draw()
    assert bench.improve() == {"mine": "on"}
    broken.append(True)
    again = await bench.draw()
    assert (again["image"], again["levers"]) == (plain["image"], [])
    assert bench.decided == {"mine": "off"}


async def test_a_lever_that_has_to_be_made_ready_is_used_for_the_sizes_for_which_it_was(bench):
    first = bench(lever(warms=True))
    await first.draw()
    assert first.improve() == {"mine": "on"}
    assert (await first.draw())["levers"] == ["mine"]
    assert (await first.draw(width=80, height=64))["levers"] == []
    first.improve()
    assert (await first.draw(width=80, height=64))["levers"] == ["mine"]
    second = bench(lever(warms=True))  # another process: nothing is ready in it
    assert (await second.draw())["levers"] == []
    second.improve()
    assert (await second.draw())["levers"] == ["mine"]


async def test_a_model_is_hot_before_what_costs_much_is_tried(bench):
    bench = bench(lever(hot=2))
    await bench.draw()
    assert bench.improve() == {}
    await bench.draw()
    assert bench.improve() == {"mine": "on"}


async def test_levers_of_a_pipeline_stay_until_a_job_may_not_use_them(bench):
    seen = []

    def on(ground):
        seen.append("on")
        return lambda: seen.append("off")

    bench = bench(lever("deep", "high", on, scope="pipeline"))
    await bench.draw(quality="high")
    assert bench.improve() == {"deep": "on"}
    await bench.draw(quality="high")
    seen.clear()
    await bench.draw(quality="high", seed=9)
    assert seen == []
    await bench.draw()
    assert seen == ["off"]
    await bench.draw(quality="high")
    assert seen == ["off", "on"]


def test_a_volume_that_cannot_be_written_costs_nothing_but_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    decisions = Decisions(tmp_path / "file/below")
    decisions.note("key", "mine", Decision("off", "slow"), {})
    assert decisions.of("key")["mine"].reason == "slow"
    assert "cannot be written" in caplog.text


async def test_what_other_workers_have_compiled_is_there_before_a_lever_is_made_ready(bench):
    happened = []

    class Cache:
        def load(self, name, check):
            happened.append("load")

        def save(self, name):
            happened.append("save")

    found = bench(lever("warm", on=lambda ground: happened.append("on") or (lambda: None), warms=True))
    found.engine._gate._compiled = Cache()
    await found.draw()
    found.improve()
    assert (happened[0], happened[-1], {*happened[1:-1]}) == ("load", "save", {"on"})
