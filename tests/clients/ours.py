"""Our own server in its own environment, as other people's clients find it: the demo model, keys, signed webhooks."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx

from tests.ports import free_port

PROJECT = Path(__file__).resolve().parents[2]
KEY = "a key of twenty letters"
SECRET = "whsec_YSBzZWNyZXQgb2Ygc29tZSBsZW5ndGg="
_PATIENCE_S = 600


@contextmanager
def running(command: list[str], environment: Mapping[str, str], ready: str, folder: Path) -> Iterator[None]:
    """Run a server until the block ends; enter it once `ready` answers 200."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=out, cwd=folder)
    try:
        _wait(lambda: httpx.get(ready, timeout=5).status_code == 200, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _PATIENCE_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            if is_ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server did not come up:\n{log.read_text(errors='replace')[-3_000:]}")


def _models(folder: Path) -> Path:
    """Write a models.yaml with the demo model, which is called by the name that LangChain asks for too."""
    text = (PROJECT / "models.yaml").read_text().replace("models/demo", f"{PROJECT}/models/demo")
    path = folder / "models.yaml"
    path.write_text(text.replace("  demo:\n", "  demo:\n    aliases: [dall-e-2]\n", 1))
    return path


@contextmanager
def our_server(folder: Path) -> Iterator[str]:
    """Serve the demo model; yield the address. Its Python is WORKER_PYTHON, else that of .venv."""
    python = os.environ.get("WORKER_PYTHON") or str(PROJECT / ".venv/bin/python")
    port = free_port()
    environment = {
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "API_KEYS": KEY,
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "VOLUME_DIR": str(folder / "volume"),
        "ALLOW_PRIVATE_URLS": "true",
        "WEBHOOK_SECRET": SECRET,
        "PYTHONPATH": str(PROJECT),
        "MODELS_YAML": str(_models(folder)),
        "ALLOWED_MODEL_DIRS": str(PROJECT / "models"),
    }
    with running([python, "-m", "worker", "serve"], environment, f"http://127.0.0.1:{port}/ping", folder):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def webhooks() -> Iterator[tuple[str, list[tuple[dict[str, str], str]]]]:
    """Listen for webhooks; yield the address, and the headers and bodies that came."""
    found: list[tuple[dict[str, str], str]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found.append((dict(self.headers.items()), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", found
    finally:
        server.shutdown()
