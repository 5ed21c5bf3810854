"""The worker on Ray Serve in processes of its own: `python -m worker ray up`, its replicas and what they logged."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests import builders
from tests.conftest import PROJECT

MODELS = ("one", "two", "three", "four")
START_S = 240.0


def write_models(folder: Path) -> Path:
    """Write a registry of four tiny models on a tier of two replicas."""
    tiny = {"defaults": {"num_inference_steps": 4}}
    models = {
        name: {"source": f"file:{builders.tiny_sd1(folder / name, seed=seed)}", "tier": "A10G", **tiny}
        for seed, name in enumerate(MODELS)
    }
    tiers = {"A10G": {"vram_gb": 24, "max_containers": 2, "scaledown_s": 30}}
    path = folder / "models.yaml"
    path.write_text(json.dumps({"tiers": tiers, "models": models}))
    return path


class RayCluster:
    """A cluster of this machine, with the worker on it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=300, limits=httpx.Limits(max_connections=80)
        )
        self.tmp = Path(f"/tmp/ray-{os.getpid()}")  # the sockets in it have long names, and few bytes for them
        self.environment = {
            **os.environ,
            "RAY_TMPDIR": str(self.tmp),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "MODELS_YAML": str(write_models(folder)),
            "DEFAULT_MODEL": "one",
            "ALLOWED_MODEL_DIRS": str(folder),
            "VOLUME_DIR": str(folder / "volume"),
            "DEVICE": "cpu",
            "WARM_UP": "true",
            "TRIAL_LOADS": "off",
            "API_HOST": "127.0.0.1",
            "API_PORT": str(port),
        }

    def start(self) -> None:
        """Start it; a machine that is busy may need a second try, since Ray gives its own node half a minute."""
        self.tmp.mkdir(exist_ok=True)
        for _ in range(3):
            with (self.folder / "ray-up.log").open("ab") as log:
                command = [sys.executable, "-m", "worker", "ray", "up"]
                self.process = subprocess.Popen(command, cwd=PROJECT, env=self.environment, stdout=log, stderr=log)
            if self._answers():
                return
        raise AssertionError((self.folder / "ray-up.log").read_text()[-3000:])

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _answers(self) -> bool:
        ends = time.monotonic() + START_S
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                if self.http.get("/health", timeout=5).status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        return False

    def run(self, model: str, **fields: Any) -> dict[str, Any]:
        """Send a job and return its answer once it is over, whatever it is, however long a busy machine takes."""
        body = {"input": {"model": model, "prompt": "a red apple", "seed": 5, **fields}}
        answer = self.http.post("/v2/any/runsync?wait=290000", json=body).json()
        while answer["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            time.sleep(1)
            answer = self.http.get(f"/v2/any/status/{answer['id']}").json()
        return answer

    def replicas(self, deployment: str) -> set[int]:
        """Return the processes of a deployment of this cluster."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_it = f"ServeReplica:diffusers:{deployment}".encode() in (folder / "cmdline").read_bytes()
                if is_it and f"RAY_TMPDIR={self.tmp}".encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
            except OSError:  # it has ended
                continue
        return found

    def ends(self) -> Counter[tuple[str, str]]:
        """Return how often each job ended in a replica, by its key there and its end."""
        logs = (self.tmp / "ray" / "session_latest" / "logs").glob("worker-*")
        text = "\n".join(path.read_text(errors="replace") for path in logs)
        return Counter(re.findall(r"job ([0-9a-f]{40}): (\w+)", text))
