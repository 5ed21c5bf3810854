"""The approval gallery: whoever has the address decides, nobody else, and each decision is in the ledger at once."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from image_client.gallery import Gallery
from image_client.ledger import Ledger
from image_client.prompts_file import Job
from image_client.starting import begin_batch

PNG = b"\x89PNG what the page shows"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Two drawn images, one whose file is gone, and one that failed."""
    jobs = [Job(index=number, fields={"prompt": f"apple {number}"}) for number in range(4)]
    with begin_batch(tmp_path, jobs, "mock", None) as ledger:
        for number in range(2):
            (tmp_path / f"{number}.png").write_bytes(PNG + bytes([number]))
            ledger.add(number, "scored", file=f"{number}.png", media_type="image/png", scores={"sharpness": number})
        ledger.add(2, "drafted", file="gone.png")
        ledger.add(3, "failed", error="generation_failed")
        yield ledger


@pytest.fixture
def gallery(ledger: Ledger) -> Iterator[Gallery]:
    with Gallery(ledger) as gallery:
        yield gallery


@pytest.fixture
def visitor(gallery: Gallery) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{gallery.host}", trust_env=False) as client:
        first = client.get(gallery.url)
        assert (first.status_code, first.headers["location"]) == (303, "/")  # the secret leaves the address
        yield client


def test_the_page_and_its_files_come_with_a_strict_policy(visitor: httpx.Client) -> None:
    for path, kind in (("/", "text/html"), ("/gallery.js", "text/javascript"), ("/gallery.css", "text/css")):
        answer = visitor.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script>" not in visitor.get("/").text


def test_images_are_shown_by_their_place_and_nothing_else_is(visitor: httpx.Client) -> None:
    assert [record["index"] for record in visitor.get("/records").json()] == [0, 1, 2]
    assert visitor.get("/images/1").content == PNG + b"\x01"
    for path in ("/images/2", "/images/3", "/images/99", "/images/-1", "/images/%2e%2e/batch.json", "/batch.json"):
        assert visitor.get(path).status_code == 404, path


def test_a_decision_is_in_the_ledger_and_can_be_taken_back(visitor: httpx.Client, ledger: Ledger) -> None:
    assert visitor.post("/records/0", json={"state": "approved"}).json()["state"] == "approved"
    told = visitor.post("/records/1", json={"state": "rejected", "reason": " blurred "}).json()
    assert (told["state"], told["reason"]) == ("rejected", "blurred")
    assert [ledger[0].state, ledger[1].state] == ["approved", "rejected"]
    visitor.post("/records/1", json={"state": "undecided"})
    assert (ledger[1].state, ledger[1].reason) == ("scored", None)
    lines = (ledger.folder / "ledger.jsonl").read_text().splitlines()
    assert [line.split('"state":"')[1].split('"')[0] for line in lines[-3:]] == ["approved", "rejected", "scored"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/records/1", {"state": "rejected"}, "reason is empty"),
        ("/records/3", {"state": "approved"}, "must be drawn before that"),
        ("/records/99", {"state": "approved"}, "There is no image 100"),
        ("/records/0", {"state": "failed"}, "Send"),
        ("/records/0", ["approved"], "Send"),
    ],
)
def test_what_cannot_be_decided_is_said(
    visitor: httpx.Client, ledger: Ledger, path: str, body: object, says: str
) -> None:
    before = (ledger.folder / "ledger.jsonl").read_bytes()
    answer = visitor.post(path, json=body)
    assert answer.status_code == 400 and says in answer.json()["error"]
    assert (ledger.folder / "ledger.jsonl").read_bytes() == before


def test_nobody_else_sees_or_decides(gallery: Gallery, ledger: Ledger, visitor: httpx.Client) -> None:
    """No cookie, a wrong secret, another site's page, and a name that was bent to this address."""
    with httpx.Client(base_url=f"http://{gallery.host}", trust_env=False) as stranger:
        for path in ("/", "/records", "/images/0", "/?secret=wrong", "/?secret=%C3%A4"):
            assert stranger.get(path).status_code == 403, path
        assert stranger.post("/records/0", json={"state": "approved"}).status_code == 403
        assert stranger.get(f"/?secret={gallery.secret}", headers={"Host": "evil.example"}).status_code == 403
    decided = {"json": {"state": "approved"}}
    assert visitor.post("/records/0", **decided, headers={"Origin": "http://evil.example"}).status_code == 403
    assert visitor.post("/records/0", **decided, headers={"Host": "evil.example"}).status_code == 403
    assert visitor.post("/records/0", content=b"x" * 70_000).status_code == 413
    assert ledger[0].state == "scored"


def test_done_ends_the_waiting(gallery: Gallery, visitor: httpx.Client) -> None:
    assert not gallery.wait(0)
    assert visitor.post("/done", json={}).status_code == 200
    assert gallery.wait(60)
