"""A real browser in front of a real worker with the demo model: only where both are there, see `make test-page`."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

PROJECT = Path(__file__).resolve().parents[2]
KEYS = ("anna's key of twenty letters", "ben's key of twenty letters")
ADMIN = "the operator's key of letters"
PATIENCE_S = 240
PATIENCE_MS = PATIENCE_S * 1000


def _served(folder: Path, command: str = "serve", **settings: str) -> Iterator[str]:
    """Serve the demo model, by a worker or a gateway, and yield the address once it is ready."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    python = os.environ.get("WORKER_PYTHON") or str(PROJECT / ".venv/bin/python")
    environment = {
        **os.environ,
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "VOLUME_DIR": str(folder / "volume"),
        "PYTHONPATH": str(PROJECT),
        **settings,
    }
    log = folder / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [python, "-m", "worker", command], env=environment, stdout=out, stderr=out, cwd=folder
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _answers(f"{address}/ready"), process, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def sites() -> Iterator[dict[str, str]]:
    """Both sites in miniature: the settings by which a worker finds them."""
    python = os.environ.get("WORKER_PYTHON") or str(PROJECT / ".venv/bin/python")
    with subprocess.Popen(
        [python, "-m", "tests.page.sites"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        yield json.loads(running.stdout.readline())
        running.communicate()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends and process.poll() is None:
        if is_ready():
            return
        time.sleep(0.5)
    raise AssertionError(f"the worker did not come up:\n{log.read_text(errors='replace')[-3_000:]}")


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker without keys."""
    yield from _served(tmp_path_factory.mktemp("open"), GPU_PRICE_PER_HOUR="3.6")


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker that asks for keys."""
    yield from _served(tmp_path_factory.mktemp("guarded"), API_KEYS=",".join(KEYS), ADMIN_KEYS=ADMIN)


@pytest.fixture(scope="session")
def gateway(worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway before that worker."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "fleet.yaml").write_text(f"replicas:\n  box:\n    url: {worker}\n    tier: L40S\n    usd_per_hour: 1.9\n")
    yield from _served(folder, "gateway", FLEET_FILE=str(folder / "fleet.yaml"))


def chromium() -> str:
    """Return where Chromium is."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "no Chromium is here: apt-get install chromium, or name one in CHROMIUM"
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield running
        running.close()


class Watch:
    """What a page did beside what was asked of it: errors of its scripts, and requests to anywhere but its worker."""

    def __init__(self, page: Any, worker: str) -> None:
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.addresses: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._console(message))
        page.on("request", lambda request: self._request(request.url, worker))

    def _console(self, message: Any) -> None:
        # A refusal of the API is no fault of the page's; the browser writes a line for each of them.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def _request(self, url: str, worker: str) -> None:
        self.addresses.append(url)
        if not url.startswith((worker, "data:", "blob:")):
            self.elsewhere.append(url)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open pages, each of a person of their own unless a `context` is given; afterwards none may have misbehaved."""
    contexts, watches = [], []

    def open_page(worker: str, hash: str = "create", context: Any = None, **options: Any) -> Any:
        if context is None:
            context = browser.new_context(
                **{"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **options}
            )
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        watches.append(Watch(page, worker))
        page.watch = watches[-1]
        page.goto(f"{worker}/ui#{hash}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [watch.errors for watch in watches if watch.errors] == []
    assert [watch.elsewhere for watch in watches if watch.elsewhere] == []
