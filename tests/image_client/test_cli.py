"""The command `image-client`, as it is typed."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from image_client.cli.commands import app
from image_client.mock_server import MockServer
from image_client.providers.table import PROVIDERS
from image_client.spending import Call, SpendingLedger
from tests.image_client.http_batch import budget_of

ROOT = Path(__file__).parents[2]
ImageClientCommand = Callable[..., Result]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageClientCommand:
    """Type a command in an empty folder, with a ledger of its own and no terminal."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("IMAGE_CLIENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IMAGE_CLIENT_LEDGER", str(tmp_path / "spending.sqlite"))

    def typed(*words: object, status: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == status, result.output
        return result

    return typed


def prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.txt"
    path.write_text("".join(f"apple {number}\n" for number in range(count)))
    return path


def spent(folder: Path) -> Decimal:
    return sum((call.dollars for call in SpendingLedger(folder / "spending.sqlite").calls()), Decimal(0))


def test_generate_and_edit_offline(typed: ImageClientCommand, tmp_path: Path) -> None:
    said = typed("generate", "a red apple", "--seed", 3, "--width", 64, "--height", 64, "-o", "apple.png").stdout
    assert "apple.png" in said and "mock/mock-1" in said and "seed 3" in said
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")
    typed("edit", "apple.png", "make it green", "-o", "green.png")
    typed("generate", "two", "--n", 2, "-o", "two.png", "--seed", 5)
    assert {path.name for path in tmp_path.glob("*.png")} == {"apple.png", "green.png", "two-1.png", "two-2.png"}
    assert "cannot be read" in typed("edit", "none.png", "x", status=1).output


def test_five_hundred_images_are_asked_for_and_refused_without_a_terminal(
    typed: ImageClientCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_test")
    result = typed("batch", prompts(tmp_path, 500), "--provider", "replicate", status=2)
    assert "Generate 500 images: $1.50 with replicate/flux-schnell. Continue?" in result.stderr
    assert "add --yes" in result.stderr and spent(tmp_path) == 0
    assert not list((tmp_path / "results").glob("*.png"))


def test_a_batch_is_stopped_by_its_budget_and_resumed(typed: ImageClientCommand, tmp_path: Path) -> None:
    with MockServer() as server:
        where = ("--base-url", server.url, "--price", "0.003", "--width", 32, "--height", 32)
        batch = ("batch", prompts(tmp_path, 20), *where, "--yes")
        result = typed(*batch, "--budget", "0.03", "--session", "drafts", status=1)
        assert "The budget leaves $0.03" in result.stderr and "image-client resume results" in result.stderr
        assert len(server.state.drawn) == 10 and spent(tmp_path) == Decimal("0.030")
        resume = ("resume", "results", "--price", "0.003", "--session", "drafts", "--budget")
        typed(*resume, "0.02", "--yes", status=1)
        result = typed(*resume, "0.10", "--yes")
    assert "Generate 10 images: $0.03 with mock/mock-1." in result.stderr
    assert set(server.state.drawn.values()) == {1} and len(server.state.drawn) == 20
    tracking = json.loads((tmp_path / "results" / "cost-tracking.json").read_text())
    assert tracking["total"] == {"images": 20, "cost_usd": 0.06, "open_usd": 0.0, "images_of_unknown_price": 0}
    assert tracking["sessions"]["drafts"]["images"] == 20 and tracking["budget"]["session_usd"] == 0.1


def test_an_unknown_price_is_refused_or_told(typed: ImageClientCommand, tmp_path: Path) -> None:
    batch = ("batch", prompts(tmp_path, 2), "--provider", "selfhosted", "--base-url", "http://127.0.0.1:9", "--yes")
    assert "is unknown" in typed(*batch, status=1).stderr and spent(tmp_path) == 0
    result = typed(*batch, "--allow-unknown-price", "--deadline", "1", status=1)
    assert "Generate 2 images: at an unknown price with selfhosted. Continue? yes" in result.stderr


def test_failures_are_listed_and_sent_again(typed: ImageClientCommand, tmp_path: Path) -> None:
    with MockServer(faults=["", "error"]) as server:
        batch = ("batch", prompts(tmp_path, 3), "--base-url", server.url, "-c", 1)
        result = typed(*batch, status=1)
        assert "2 failed: The job failed: " in result.stdout and "image-client resume results --failed" in result.stdout
        assert "3 of 3 images" in typed("resume", "results", "--failed").stdout


def test_review_scores_rejects_and_approves(typed: ImageClientCommand, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "list.jsonl").write_text('{"prompt": "a", "seed": 1}\n{"prompt": "a", "seed": 1}\n{"prompt": "b"}\n')
    assert "is the same image as" in typed("batch", "list.jsonl").stdout
    result = typed("review", "results", "--max", "near_duplicate=0.995", "--approve-rest")
    assert re.search(r"rejected: near_duplicate 1 is above 0\.995", result.stdout)
    lines = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["approved", "rejected", "approved"]
    assert lines[1]["duplicate_of"] == 0 and lines[0]["scores"]["exposure"] > 0
    assert "'beauty' is no score" in typed("review", "results", "--score", "beauty", status=1).stderr


def test_cost_as_table_json_csv_and_curve(typed: ImageClientCommand, tmp_path: Path) -> None:
    typed("batch", prompts(tmp_path, 4), "--price", "0.25", "--yes", "--session", "pages")
    assert re.search(r"pages\s+4\s+\$1\.0000", typed("cost").stdout)
    assert json.loads(typed("cost", "--json").stdout)["total"]["cost_usd"] == 1.0
    typed("cost", "--csv", "cost.csv", "--plot", "cost.svg", "--export", "deep/cost-tracking.json")
    rows = (tmp_path / "cost.csv").read_text().splitlines()
    assert len(rows) == 5 and ",0.25," in rows[1]
    svg = (tmp_path / "cost.svg").read_text()
    assert svg.startswith("<svg") and svg.count("<polyline") == 1 and "budget $60.00" in svg
    assert json.loads((tmp_path / "deep" / "cost-tracking.json").read_text())["months"]


def test_compare_prices_our_own_fleet_by_its_measured_seconds(typed: ImageClientCommand, tmp_path: Path) -> None:
    ledger = SpendingLedger(tmp_path / "spending.sqlite")
    for number, seconds in enumerate((1.0, 2.0, 9.0)):
        ledger.reserve(
            Call(f"{number}", "s", "2026-11", "selfhosted", "flux", 1, "reserved", None, None, "x", None), [], []
        )
        ledger.settle(f"{number}", None, seconds)
    lines = typed("compare", "--n", 500).stdout.splitlines()
    assert any(re.match(r"replicate +black-forest-labs/flux-schnell +\$0\.003 +\$1\.50 ", line) for line in lines)
    assert any(re.match(r"selfhosted +flux +unknown +unknown +2\.0 s", line) for line in lines)
    assert {line.split()[0] for line in lines[1:]} == set(PROVIDERS)  # those of unknown price too
    said = typed("compare", "--n", 1000, "--gpu", "l40s").stdout
    assert re.search(r"selfhosted on modal's L40S +flux +\$0\.001084 +\$1\.08 +2\.0 s", said)
    assert "REPLICATE_API_TOKEN" in typed("providers").stdout


def ask(folder: Path, server: MockServer, answer: str) -> tuple[int, str]:
    """Type a batch at a terminal, answer its question, and return its status and what the terminal showed."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "image_client.cli", "batch", str(prompts(folder, 5)), "--price", "0.003"]
    command += ["--base-url", server.url, "--out", str(folder / "results"), "--ledger", str(folder / "spending.sqlite")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(master, 4096)
    assert not server.state.drawn
    os.write(master, answer.encode())
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # the other end of the terminal is closed
        pass
    os.close(master)
    return process.wait(timeout=60), shown.decode()


def test_the_question_at_a_terminal(tmp_path: Path) -> None:
    with MockServer() as server:
        status, shown = ask(tmp_path, server, "n\n")
        assert "Generate 5 images: $0.015 with mock/mock-1. Continue? [y/N]" in shown
        assert status == 1 and "Nothing was sent" in shown and not server.state.drawn
        status, shown = ask(tmp_path, server, "y\n")
        assert status == 0 and len(server.state.drawn) == 5 and "5 of 5 images" in shown
        assert "5/5" in shown and "$0.015" in shown  # the line of progress
    assert budget_of(tmp_path).ledger.calls() and spent(tmp_path) == Decimal("0.015")
