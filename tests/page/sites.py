"""Both sites in miniature, for a worker that a browser looks at: says where they are, and lasts until its input ends.

It runs by the worker's Python, which has what the sites need.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.builders import tiny_sd1
from tests.fakes.civitai import FakeCivitai
from tests.fakes.hub import FakeHub
from tests.service.discovery.pages import fill_civitai, fill_hub

if __name__ == "__main__":
    with FakeCivitai() as site, FakeHub() as hub, tempfile.TemporaryDirectory() as folder:
        fill_civitai(site)
        fill_hub(hub, Path(folder))
        tiny_sd1(Path(folder) / "small")
        hub.add_repo("org/small", Path(folder) / "small", tags=["diffusers"])
        sys.stdout.write(json.dumps({"CIVITAI_ENDPOINT": site.origin, "HF_ENDPOINT": hub.endpoint}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
