"""What follows from the changes of a history: names of versions, what each alias means, and who gets which."""

from collections import Counter

from worker.catalog.versions import content_digest, replay
from worker.core.model import LoraSpec, ModelSource, ModelSpec
from worker.core.version import (
    AliasMoved,
    HaltRule,
    PinnedFile,
    PinnedSource,
    SplitChanged,
    VersionAdded,
    VersionContent,
    change_line,
    parse_change,
)

STAMP = {"at": "2026-11-30T14:00:00.000+00:00", "who": "ann", "model": "m"}
SOURCE = ModelSource(scheme="hf", locator="org/m", revision="0123abc")
SPEC = ModelSpec(id="m", source=SOURCE, aliases=("small",), defaults={"num_inference_steps": 5})


def added(letter):
    spec = SPEC.model_copy(update={"loras": (LoraSpec(model=f"org/{letter}"),)})
    file = PinnedFile(size=1, sha256=letter * 64)
    content = VersionContent(
        digest=content_digest(spec), entry=letter, spec=spec, sources=(PinnedSource(source=SOURCE, files={"a": file}),)
    )
    return VersionAdded(kind="version", content=content, **STAMP)


def moved(alias, to):
    return AliasMoved(kind="alias", alias=alias, moved_to=to, **STAMP)


def split(**arms):
    return SplitChanged(kind="split", arms=arms, **STAMP)


def after(*changes):
    return replay([parse_change(change_line(change)) for change in changes])["m"]  # as the file has them


FIRST = (added("a"), moved("stable", "v1"), added("b"))


def test_versions_are_counted_in_their_order_and_the_same_content_is_the_same_version():
    model = after(*FIRST, added("a"), moved("candidate", "v2"))
    assert [version.name for version in model.versions] == ["v1", "v2"]
    assert (model.find("stable").name, model.find("candidate").name, model.find("v3")) == ("v1", "v2", None)
    assert model.changes == 5


def test_the_content_is_what_makes_images_and_the_rest_is_the_entry_s():
    model = after(*FIRST)
    entry = SPEC.model_copy(update={"aliases": ("tiny",), "limits": {"max_side": 64.0}, "defaults": {}})
    assert content_digest(entry) != content_digest(SPEC)
    assert content_digest(entry.model_copy(update={"defaults": SPEC.defaults})) == content_digest(SPEC)
    served = model.serve(entry, model.find("v2"))
    assert (served.version, served.served_name) == ("v2", "m@v2")
    assert (served.aliases, served.limits, served.defaults) == (("tiny",), {"max_side": 64.0}, SPEC.defaults)
    assert served.loras == (LoraSpec(model="org/b"),)


def test_who_goes_back_can_go_back_further_and_forward_again():
    changes = [*FIRST, moved("stable", "v2"), added("c"), moved("stable", "v3")]
    assert after(*changes).before.name == "v2"
    changes += [moved("stable", "v2")]
    assert after(*changes).before.name == "v1"
    changes += [moved("stable", "v1")]
    assert after(*changes).before is None
    changes += [moved("stable", "v3")]
    assert after(*changes).before.name == "v1"


def test_what_an_alias_a_split_or_a_rollback_can_ask_for_is_in_use():
    def in_use(*changes):
        return sorted(version.name for version in after(*FIRST, added("c"), *changes).in_use)

    assert in_use() == ["v1"]
    assert in_use(moved("candidate", "v3")) == ["v1", "v3"]
    assert in_use(moved("stable", "v2")) == ["v1", "v2"]
    assert in_use(split(stable=1.0, v2=1.0)) == ["v1", "v2"]
    assert in_use(moved("stable", "v2"), moved("stable", "v1"), moved("stable", "v3")) == ["v1", "v3"]


def test_a_split_is_kept_for_every_key_and_a_larger_share_sends_nobody_back():
    changes = [*FIRST, moved("candidate", "v2")]
    keys = [f"caller {number}" for number in range(4_000)]

    def arms(**shares):
        model = after(*changes, split(**shares))
        return {key: model.choose(key) for key in keys}

    small, large = arms(stable=90.0, candidate=10.0), arms(stable=80.0, candidate=20.0)
    assert small == arms(stable=0.9, candidate=0.1)
    counts = Counter(choice.version for choice in small.values())
    assert abs(counts["v2"] - 400) < 4 * (4_000 * 0.1 * 0.9) ** 0.5
    assert {key for key in keys if small[key].arm == "candidate"} < {
        key for key in keys if large[key].arm == "candidate"
    }
    assert {choice.chosen_by for choice in large.values()} == {"stable", "candidate"}


def test_the_share_of_an_arm_that_is_not_there_is_stable_s_and_a_move_of_stable_ends_a_split():
    model = after(*FIRST, split(v1=1.0, v9=1_000.0))
    assert {model.choose(str(number)).version for number in range(50)} == {"v1"}
    model = after(*FIRST, split(v1=1.0, v2=1_000.0), moved("stable", "v2"))
    assert model.split is None
    choice = model.choose("anybody")
    assert (choice.version, choice.arm, choice.chosen_by, choice.changes) == ("v2", None, "stable", 5)


def test_without_a_version_nothing_is_chosen():
    assert after(added("a")).choose("anybody") is None


def test_a_line_of_the_history_says_no_more_than_it_has_to():
    assert change_line(moved("stable", "v1")).count(b":") == 9
    halted = SplitChanged(kind="split", halted="candidate", halt=HaltRule(jobs=7), **STAMP)
    assert parse_change(change_line(halted)) == halted
