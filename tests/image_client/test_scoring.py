"""Scores and the way to an approval: what is blurred, black, drawn twice or unsafe is told, and somebody decides."""

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from image_client import approval
from image_client.approval import apply_rules, approve, queue, reject, score_all
from image_client.errors import InvalidRequest
from image_client.ledger import Ledger
from image_client.prompts_file import Job
from image_client.scorers import BUILT_IN, scorers_named
from image_client.scoring import Candidate, Rule, ScoringError, told_by_worker
from image_client.starting import begin_batch


def house(size: int = 256, shift: int = 0) -> Image.Image:
    image = Image.new("RGB", (size, size), (90, 140, 200))
    pen = ImageDraw.Draw(image)
    for number in range(8):
        left = size * number // 9 + shift
        pen.rectangle((left, size // 3, left + size // 20, size - size // 10), fill=(200, 60 + 20 * number, 40))
    return image


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Six drawn images: a house, the same again in another size, blurred, a black one, a text, and none."""
    images = {
        "house": house(),
        "again": house(300),
        "blurred": house().filter(ImageFilter.GaussianBlur(12)),
        "black": Image.new("RGB", (64, 64)),
    }
    jobs = [Job(index=number, fields={"prompt": name}) for number, name in enumerate((*images, "text", "failed"))]
    with begin_batch(tmp_path, jobs, "mock", None) as ledger:
        for number, (name, image) in enumerate(images.items()):
            image.save(tmp_path / f"{name}.png")
            ledger.add(number, "drafted", file=f"{name}.png", sha256=f"{number:064x}")
        (tmp_path / "text.png").write_text("no image")
        ledger.add(4, "drafted", file="text.png", sha256="f" * 64)
        ledger.add(5, "failed", error="generation_failed", reason="broken")
        yield ledger


def test_scores_tell_images_apart(ledger: Ledger) -> None:
    faults = score_all(ledger, scorers_named(BUILT_IN))
    assert len(faults) == 1 and "text.png cannot be read as an image" in faults[0]
    scores = [record.scores for record in ledger.records()]
    assert scores[0]["sharpness"] > 20 > scores[2]["sharpness"] > scores[3]["sharpness"] == 0
    assert scores[1]["sharpness"] == pytest.approx(scores[0]["sharpness"], rel=0.5)  # whatever its size
    assert scores[3]["exposure"] == 0 and scores[0]["exposure"] > 0.9
    assert scores[0]["near_duplicate"] == 0 and scores[1]["near_duplicate"] > 0.9
    assert [record.state for record in ledger.records()] == [*["scored"] * 4, "drafted", "failed"]
    assert "nsfw" not in scores[0]  # nobody has said so


def test_scoring_again_adds_no_line(ledger: Ledger) -> None:
    score_all(ledger, scorers_named(["sharpness"]))
    before = (ledger.folder / "ledger.jsonl").read_bytes()
    score_all(ledger, scorers_named(["sharpness"]))
    assert (ledger.folder / "ledger.jsonl").read_bytes() == before


def test_rules_reject_with_a_reason_and_leave_decisions_alone(ledger: Ledger) -> None:
    score_all(ledger, scorers_named(["sharpness", "exposure"]))
    approve(ledger, 3)
    rejected = apply_rules(ledger, [Rule("sharpness", least=20), Rule("exposure", least=0.5)])
    assert [(record.index, record.state) for record in rejected] == [(2, "rejected")]
    assert "sharpness" in rejected[0].reason and "is below 20" in rejected[0].reason
    assert [record.index for record in queue(ledger)] == [0, 1, 4]


def test_only_what_was_drawn_is_decided_on(ledger: Ledger) -> None:
    approve(ledger, 0)
    reject(ledger, 0, " too many doors ")
    assert (ledger[0].state, ledger[0].reason) == ("rejected", "too many doors")
    assert approve(ledger, 0).reason is None
    for wrong in (lambda: approve(ledger, 5), lambda: reject(ledger, 1, " "), lambda: approve(ledger, 6)):
        with pytest.raises(InvalidRequest):
            wrong()


def test_what_the_workers_safety_checker_said() -> None:
    answer = {"output": {"seed": 1, "safety": [{"flagged": True, "label": "nsfw", "score": 0.93}]}}
    assert told_by_worker(answer) == {"nsfw": 0.93}
    for silent in (None, {}, {"output": "x"}, {"output": {"safety": []}}, {"output": {"safety": [{"score": "high"}]}}):
        assert told_by_worker(silent) == {}


def test_a_score_of_ones_own(ledger: Ledger) -> None:
    class Width:
        name = "width"

        def score(self, candidate: Candidate) -> float | None:
            return float(candidate.pixels.width) if candidate.record.prompt != "black" else None

    score_all(ledger, [Width()])
    assert [record.scores.get("width") for record in ledger.records()] == [256, 300, 256, None, None, None]


def test_without_pillow_it_says_once_what_to_install(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.setitem(sys.modules, name, None)
    (fault,) = score_all(ledger, scorers_named(BUILT_IN))
    assert "universal-image-client[pil]" in fault
    assert approve(ledger, 0).state == "approved"  # nobody needs a score for that


@pytest.mark.slow
def test_clip_is_asked_as_transformers_does(ledger: Ledger, tmp_path: Path) -> None:
    """A tiny CLIP with random weights, which knows nothing."""
    from image_client.clip import ClipScorer
    from tests.image_client.tiny_clip import save_tiny_clip

    folder = save_tiny_clip(tmp_path / "clip")
    assert not score_all(ledger, []) and approval.queue(ledger)
    record = ledger.records()[0]
    score = ClipScorer(str(folder)).score(Candidate(record, ledger.folder / str(record.file)))
    assert score is not None and 0 <= score <= 1
    with pytest.raises(ScoringError, match="cannot be loaded"):
        ClipScorer(str(tmp_path / "none")).score(Candidate(record, ledger.folder / str(record.file)))
