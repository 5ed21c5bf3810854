"""A gateway's plan: for each tier whether the model fits, what would be moved, seconds and dollars."""

from dataclasses import replace
from pathlib import Path

from tests.remote.test_placement import FLUX, FLUX_PLAN, GB, NOW, a10, a100, at
from worker.core.answer import PlanReport
from worker.core.device import DeviceInfo
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec
from worker.engine.plan import make_plan, memory_ways
from worker.remote.outlook import outlook
from worker.wire.introspection import encode_plan

TIERS = {"A10G": 24 * GB, "L40S": 48 * GB, "A100": 80 * GB}


def test_each_tier_has_a_line_the_smallest_first() -> None:
    replicas = [a100("big", "flux", queue_s=40), at("mid"), at("busy", queue_s=90)]
    small, middle, large = outlook(replace(FLUX, memory=(("none", 30 * GB),)), replicas, TIERS, NOW)
    assert (small.tier, small.fits, small.seconds) == ("A10G", False, None)
    assert small.reason == "A10G has 24.0 GB and flux needs 30.0 GB."
    assert (middle.tier, middle.nearness, middle.moved_bytes, middle.chosen) == ("L40S", "volume", 24 * GB, False)
    assert middle.seconds == 86.0  # 80 from the volume, 6 to generate; nothing of the busier replica's queue
    assert middle.usd == 86 * 0.0005
    assert (large.tier, large.nearness, large.moved_bytes, large.chosen) == ("A100", "resident", 0, True)
    assert (large.seconds, large.usd) == (46.0, 6 * 0.0008)


def test_a_tier_without_a_replica_is_judged_by_its_memory() -> None:
    lines = outlook(FLUX_PLAN, [], TIERS, NOW)
    assert [(line.tier, line.fits, line.seconds) for line in lines] == [
        ("A10G", True, None),
        ("L40S", True, None),
        ("A100", True, None),
    ]
    assert lines[0].reason == "A10G would hold flux, and the fleet has no replica of it."


def test_a_tier_whose_replicas_rest_fits_all_the_same() -> None:
    (line,) = outlook(FLUX, [at("a", health="resting")], {}, NOW)
    assert (line.fits, line.chosen, line.seconds, line.reason) == (True, False, None, "a failed and rests.")


def test_offloading_is_told() -> None:
    small = outlook(FLUX_PLAN, [a10("a", "flux")], {}, NOW)[0]
    assert (small.fits, small.offload) == (True, "model")
    assert "model offloading" in small.reason


def test_the_memory_of_a_job_is_the_very_ladder_that_the_worker_plans_by(tmp_path: Path) -> None:
    spec = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="a/m"))
    known = _Known(
        spec, Detection(kind=Kind.PIPELINE, format="diffusers", pipeline="FluxPipeline", activation_gb_per_mp=2.0)
    )
    files = ModelFiles(root=tmp_path, total_bytes=24 * GB, parameters={"transformer": 8 * GB, "text_encoder": 4 * GB})
    ways = memory_ways(known, files, _gpu(1), megapixels=1.0)
    assert [offload for offload, _ in ways] == ["none", "group", "model", "sequential"]
    for offload, size in ways:
        plan = make_plan(known, files, _gpu(size), megapixels=1.0)
        assert (plan.offload, plan.estimated_bytes) == (offload, size)


def _gpu(size: int) -> DeviceInfo:
    return DeviceInfo("cuda", "a GPU", size, size)


class _Known:
    """A model of which the plan asks two things."""

    def __init__(self, spec: ModelSpec, detection: Detection) -> None:
        self.spec, self.detection = spec, detection


def test_a_plan_is_written_with_its_tiers() -> None:
    report = PlanReport(
        model="flux",
        architecture=None,
        pipeline=None,
        tasks=(),
        revision=None,
        weight_bytes=24 * GB,
        native_size=1024,
        device="a fleet",
        free_bytes=0,
        fits=True,
        tiers=outlook(FLUX, [at("a", "flux")], {"A10G": 24 * 2**30}, NOW),
    )
    without, with_one = encode_plan(report)["tiers"]
    assert without["tier"] == "A10G" and without["vram_gb"] == 24.0 and without["expected_s"] is None
    assert with_one == {
        "tier": "L40S",
        "vram_gb": round(48 * GB / 2**30, 2),
        "fits": True,
        "chosen": True,
        "offload": "none",
        "model_is": "resident",
        "moved_gb": 0.0,
        "expected_s": 6.0,
        "expected_usd": 0.003,
        "reason": "a: flux is resident: 6.0 s and $0.003.",
    }
