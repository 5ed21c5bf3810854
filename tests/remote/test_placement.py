"""Where an operator would send a job, in 30 situations, and what they would be told."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from worker.remote.placement import Policy, larger_than, place, refusals
from worker.remote.replica import Needs, ReplicaState, Weights

GB = 10**9
NOW = 10_000.0

# FLUX takes 12 s from a disk, 80 s from a volume and 252 s from its source; SDXL 3.5, 23 and 74 s.
FLUX = Needs(model="flux", weights=(Weights("flux", 24 * GB),), inference_s=6.0)
SDXL = Needs(model="sdxl", weights=(Weights("sdxl", 7 * GB),), inference_s=3.0)
FLUX_PLAN = replace(FLUX, memory=(("none", 30 * GB), ("model", 20 * GB), ("sequential", 6 * GB)))
STYLED = replace(SDXL, weights=(*SDXL.weights, Weights("style", GB), Weights("canny", 5 * GB)))
UNSIZED = Needs(model="new", weights=(Weights("new"),), inference_s=6.0)


def at(name: str, resident: str = "", **facts: object) -> ReplicaState:
    """A replica on an L40S with these models on its device, all of them used a moment ago."""
    models = resident.split()
    known = {"tier": "L40S", "vram_bytes": 48 * GB, "usd_per_second": 0.0005, "on_volume": {"flux", "sdxl", "qwen"}}
    used = {"used_at": dict.fromkeys(models, NOW - 1)}
    return ReplicaState(name=name, resident=frozenset(models), **(known | used | facts))


def a10(name: str, resident: str = "", **facts: object) -> ReplicaState:
    return at(name, resident, **({"tier": "A10G", "vram_bytes": 24 * GB, "usd_per_second": 0.0003} | facts))


def a100(name: str, resident: str = "", **facts: object) -> ReplicaState:
    return at(name, resident, **({"tier": "A100", "vram_bytes": 80 * GB, "usd_per_second": 0.0008} | facts))


def asleep(name: str, start_s: float, **facts: object) -> ReplicaState:
    """An endpoint without a worker, whose platform starts one in this time."""
    return at(name, **({"workers": 0, "can_grow": True, "cold_start_s": start_s} | facts))


def hosted(name: str, usd: float, **facts: object) -> ReplicaState:
    known = {"serves": frozenset({"flux"}), "usd_per_image": usd, "max_usd_per_image": 0.05, "workers": 1}
    return ReplicaState(name=name, kind="hosted", **(known | facts))


class Situation(NamedTuple):
    title: str
    needs: Needs
    replicas: list[ReplicaState]
    choice: list[str]  # in the order of the choice; those that are left out are not asked
    reason: str  # what the sentence of the first one says


TABLE = [
    # Where the bytes are
    Situation("resident before disk", FLUX, [at("a", on_disk={"flux"}), at("b", "flux")], ["b", "a"], "is resident"),
    Situation("disk before volume", FLUX, [at("a"), at("b", on_disk={"flux"})], ["b", "a"], "is on its disk"),
    Situation("volume before download", FLUX, [at("a", on_volume=set()), at("b")], ["b", "a"], "is on its volume"),
    Situation(
        "a fast volume before a slow disk",
        FLUX,
        [at("a", on_disk={"flux"}, disk_bytes_per_s=2e8), at("b", volume_bytes_per_s=1e9)],
        ["b", "a"],
        "24.0 s to move 24.0 GB",
    ),
    Situation(
        "a fast line to the source before a slow volume",
        FLUX,
        [at("a", volume_bytes_per_s=5e7), at("b", on_volume=set(), download_bytes_per_s=1e9)],
        ["b", "a"],
        "has to be downloaded",
    ),
    Situation(
        "a model of unknown size goes where it is already",
        UNSIZED,
        [at("a"), at("b", on_disk={"new"})],
        ["b", "a"],
        "is on its disk",
    ),
    # Adapters
    Situation(
        "of two with the model, the one that has the LoRA too",
        STYLED,
        [at("a", "sdxl"), at("b", "sdxl", resident_adapters={"style"})],
        ["b", "a"],
        "to move 5.0 GB",
    ),
    Situation(
        "a large ControlNet to download outweighs a small model on the disk",
        STYLED,
        [at("a", "sdxl"), at("b", on_disk={"sdxl", "style", "canny"})],
        ["b", "a"],
        "is on its disk",
    ),
    # Queues
    Situation(
        "a short queue before a load",
        FLUX,
        [at("a", "flux", queue_s=8, queued_models=("flux",)), at("b", on_disk={"flux"})],
        ["a", "b"],
        "8.0 s of queue",
    ),
    Situation(
        "a load before a long queue",
        FLUX,
        [at("a", "flux", queue_s=60, queued_models=("flux",)), at("b", on_disk={"flux"})],
        ["b", "a"],
        "12.0 s to move",
    ),
    Situation(
        "of two with the model, the shorter queue",
        FLUX,
        [at("a", "flux", queue_s=12), at("b", "flux", queue_s=6)],
        ["b", "a"],
        "6.0 s of queue",
    ),
    Situation(
        "what is loaded for a job before it counts as resident",
        FLUX,
        [at("a", "sdxl", queue_s=20, queued_models=("flux",)), at("b", "sdxl")],
        ["a", "b"],
        "is resident",
    ),
    Situation(
        "what a job before it evicts does not",
        FLUX,
        [at("a", "flux", queue_s=5, queued_models=("sdxl",)), at("b", "qwen", on_disk={"flux"})],
        ["b", "a"],
        "is on its disk",
    ),
    # Two models, two replicas
    Situation(
        "an idle replica of another model is left alone while the own one is soon free",
        SDXL,
        [at("a", "sdxl", queue_s=4), at("b", "flux")],
        ["a", "b"],
        "4.0 s of queue",
    ),
    Situation(
        "equals do not swap: the busier one keeps its model, even a little later",
        FLUX,
        [at("a", "flux", queue_s=15), at("b", "sdxl", on_disk={"flux", "sdxl"})],
        ["a", "b"],
        "is resident",
    ),
    Situation(
        "an empty replica before one that has to evict",
        SDXL,
        [at("a", "flux"), at("b")],
        ["b", "a"],
        "is on its volume",
    ),
    Situation(
        "the model that nobody asked for today makes room",
        SDXL,
        [at("a", "flux"), at("b", "qwen", used_at={"qwen": NOW - 7200})],
        ["b", "a"],
        "qwen makes room",
    ),
    Situation(
        "the model that others hold too makes room",
        SDXL,
        [at("a", "qwen"), at("b", "flux"), at("c", "flux", queue_s=90)],
        ["b", "a", "c"],
        "flux makes room",
    ),
    Situation(
        "a replica with a second place evicts nothing",
        SDXL,
        [at("a", "flux"), at("b", "flux", resident_slots=2)],
        ["b", "a"],
        "is on its volume",
    ),
    # Cold starts
    Situation(
        "a warm replica before a cold one",
        FLUX,
        [at("a", warm=False, cold_start_s=30), at("b")],
        ["b", "a"],
        "is on its volume",
    ),
    Situation(
        "of two that sleep, the one that was measured to start sooner",
        FLUX,
        [asleep("a", 45), asleep("b", 12)],
        ["b", "a"],
        "12.0 s to start",
    ),
    Situation(
        "a GPU is not woken for a short queue",
        FLUX,
        [asleep("a", 20), at("b", "flux", queue_s=30)],
        ["b", "a"],
        "30.0 s of queue",
    ),
    Situation(
        "an endpoint whose workers are all busy for long starts another one",
        FLUX,
        [at("a", "flux", workers=2, can_grow=True, queue_s=400, cold_start_s=20)],
        ["a"],
        "20.0 s to start",
    ),
    # Tiers
    Situation(
        "the smallest device that holds the model whole, at equal times",
        FLUX_PLAN,
        [a100("a", "flux", usd_per_second=0.0), at("b", "flux", usd_per_second=0.0), a10("c", "flux")],
        ["b", "a", "c"],
        "is resident",
    ),
    Situation(
        "offloading only where nothing holds it whole",
        FLUX_PLAN,
        [a10("a", "flux"), at("b")],
        ["b", "a"],
        "is on its volume",
    ),
    Situation(
        "not on a smaller device than the tier that models.yaml names",
        replace(SDXL, tier="L40S"),
        [a10("a", "sdxl"), at("b"), a100("c", "sdxl")],
        ["c", "b"],
        "is resident",
    ),
    Situation(
        "the cheaper of two tiers, where it takes as long",
        SDXL,
        [a100("a", "sdxl", usd_per_second=0.004), a10("b", "sdxl")],
        ["b", "a"],
        "$0.0009",
    ),
    # Others' machines
    Situation(
        "a provider stands in while the own replicas are far behind, within the price limit",
        FLUX,
        [at("a", "flux", queue_s=300), hosted("b", 0.025)],
        ["b", "a"],
        "$0.025",
    ),
    Situation(
        "a provider above the limit is not asked, nor one that has no LoRAs",
        replace(FLUX, megapixels=4.2),
        [
            at("a", "flux", queue_s=300),
            hosted("b", 0.06),
            hosted("c", 0.0, usd_per_megapixel=0.025),
            hosted("d", 0.025, usd_left=0.02),
        ],
        ["a"],
        "300.0 s of queue",
    ),
    # Trouble
    Situation(
        "a replica that failed rests, one that serves other models is not asked",
        FLUX,
        [at("a", "flux", health="resting"), at("b", "flux", serves=frozenset({"sdxl"})), at("c")],
        ["c"],
        "is on its volume",
    ),
]


def test_there_are_thirty_situations() -> None:
    assert len({situation.title for situation in TABLE}) == 30


@pytest.mark.parametrize("situation", TABLE, ids=[situation.title for situation in TABLE])
def test_a_job_goes_where_an_operator_would_send_it(situation: Situation) -> None:
    choices = place(situation.needs, situation.replicas, NOW)
    assert [choice.replica for choice in choices] == situation.choice
    assert situation.reason in choices[0].reason
    # The order in which replicas are listed decides nothing.
    turned = place(situation.needs, situation.replicas[::-1], NOW)
    assert [choice.replica for choice in turned] == situation.choice


def test_who_is_not_asked_is_told_why_and_whether_that_may_change() -> None:
    sleepy = at("d", workers=0)
    replicas = [at("a", health="resting"), a10("b"), at("c", serves=frozenset({"sdxl"})), sleepy]
    whole = replace(FLUX, memory=(("none", 30 * GB),))
    assert place(whole, replicas, NOW) == ()
    assert [(item.replica, item.lasting, item.reason) for item in refusals(whole, replicas)] == [
        ("a", False, "a failed and rests"),
        ("b", True, "b has 24.0 GB and flux needs 30.0 GB"),
        ("c", True, "c does not serve flux"),
        ("d", False, "d has no worker and starts none"),
    ]


def test_after_a_replica_ran_out_of_memory_only_larger_ones_are_tried() -> None:
    failed = at("a", "flux")
    replicas = [failed, a10("b", "flux"), a100("c"), at("d", "flux")]
    choices = place(FLUX, replicas, NOW)
    assert {choice.replica for choice in choices} == {"a", "b", "c", "d"}
    assert [choice.replica for choice in larger_than(choices, failed, replicas)] == ["c"]


def test_a_dearer_second_of_waiting_buys_a_dearer_gpu() -> None:
    replicas = [a100("a", "flux", usd_per_second=0.004), a10("b", "flux", speed=0.4)]
    assert place(FLUX, replicas, NOW, Policy(second_usd=0.01))[0].replica == "a"
    assert place(FLUX, replicas, NOW, Policy(second_usd=0.0001))[0].replica == "b"
