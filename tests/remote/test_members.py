"""What a gateway remembers of a replica beyond what that says of itself."""

from dataclasses import dataclass

import pytest

from worker.remote.members import Member, Members
from worker.remote.replica import Kind, ReplicaState


@dataclass
class Silent:
    """A platform that says nothing of models."""

    kind: Kind = "http"
    name: str = "a"
    volume: str | None = None

    def state(self) -> ReplicaState:
        return ReplicaState(name=self.name, kind=self.kind, volume=self.volume)


@pytest.mark.parametrize(("kind", "kept"), [("http", {"flux", "sdxl"}), ("runpod", set())])
def test_a_machines_disk_keeps_what_it_answered_with_and_a_platforms_fresh_worker_has_none(kind, kept) -> None:
    member = Member(Silent(kind))
    member.has_answered("flux")
    member.has_answered("sdxl")
    assert member.state(0.0).on_disk == kept


def test_adapters_stay_beside_the_model_that_answered_last() -> None:
    member = Member(Silent())
    member.has_answered("flux", ["style"])
    member.has_answered("flux", ["canny"])
    assert member.state(0.0).resident_adapters == {"style", "canny"}
    member.has_answered("flux", ["1", "2", "3"])
    assert member.state(0.0).resident_adapters == {"1", "2", "3", "canny"}
    member.has_answered("sdxl")
    assert member.state(0.0).resident_adapters == set()


def test_what_one_replica_has_fetched_is_on_the_volume_of_all_that_share_it() -> None:
    places = [("a", "models"), ("b", "models"), ("c", "other"), ("d", None)]
    members = Members([Member(Silent(name=name, volume=volume)) for name, volume in places])
    members.all["a"].has_answered("flux")
    members.all["d"].has_answered("sdxl")
    known = {state.name: (set(state.on_volume), set(state.on_disk)) for state in members.states()}
    assert known == {"a": ({"flux"}, set()), "b": ({"flux"}, set()), "c": (set(), set()), "d": (set(), {"sdxl"})}
