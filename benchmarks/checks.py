"""The measures of what comes before drawing: what a file is, and what a request asks for. CPU only; wall seconds.

Seconds say something of one machine; the ratios are of two things that are measured in turn, and hold on any.
"""

import asyncio
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, median_of, seconds_of


def detection() -> list[Figure]:
    """What a checkpoint is, from its header; against reading that header's JSON."""
    import torch

    from tests.catalog.corpus import header_of, sparse_file, stored
    from worker.catalog.detector import detect_header
    from worker.catalog.detectors.components import resemble
    from worker.catalog.formats.headers import parse_header, read_header

    head, size = header_of(stored("sdxl"))
    found = parse_header(head, size, "sdxl")
    with tempfile.TemporaryDirectory() as name:
        path = sparse_file(Path(name) / "sdxl.safetensors", stored("sdxl"))
        pickled = Path(name) / "sd1.ckpt"
        torch.save({"state_dict": {f"a.{at}.weight": torch.zeros(1) for at in range(1_100)}}, pickled)
        ours, parsing, theirs = _in_turn(
            20,
            lambda: detect_header(read_header(path)),
            lambda: parse_header(head, size, "sdxl"),
            lambda: json.loads(head[8:]),
        )
        return [
            Figure("inspect an SDXL file", ours * 1e3, "ms", 20),
            Figure("its header, against json.loads of it", parsing / theirs, "x", 20, at_most=10.0),
            Figure("inspect it, against json.loads of its header", ours / theirs, "x", 20, at_most=25.0),
            Figure("compare its names with diffusers' classes", median_of(lambda: resemble(found), 20) * 1e3, "ms", 20),
            Figure(
                "names in a torch file of 1,100 tensors",
                median_of(lambda: read_header(pickled, allow_pickles=True), 7) * 1e3,
                "ms",
                7,
            ),
        ]


def checking() -> list[Figure]:
    """What answers cost that need no model: a refusal, an inspection, a log line without what is private."""
    from tests.catalog.corpus import sparse_file, stored
    from tests.fakes.engine import fresh_id, make_context
    from worker.app.queue import build_door
    from worker.catalog.classes.signatures import call_parameters
    from worker.service.usage.privacy import kept, redact

    index = seconds_of(lambda: call_parameters("StableDiffusionPipeline"))
    signature = seconds_of(lambda: call_parameters("FluxPipeline"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        context = make_context(root, allow_unregistered_models=True)
        door = build_door(context.worker, concurrency=1)
        path = sparse_file(root / "models/file.safetensors", stored("sdxl"))

        async def answers(payload: dict[str, Any], runs: int) -> list[float]:
            seconds = []
            loop = asyncio.get_running_loop()
            for _ in range(runs):
                began = loop.time()
                await door.handle({"id": fresh_id(), "input": payload})
                seconds.append(loop.time() - began)
            return seconds

        async def both() -> tuple[list[float], list[float]]:
            await answers({"prompt": "x"}, 1)  # reads what later ones find read
            return (
                await answers({"prompt": "x", "widht": 3}, 200),
                await answers({"action": "inspect", "model": f"file:{path}"}, 20),
            )

        refused, inspected = asyncio.run(both())
    prompts = [f"{index} a long prompt, in words that nobody else says " * 20 for index in range(64)]
    with kept({"prompts": prompts, "images": ["QUJD" * 1_000_000] * 128}):
        redacting = median_of(lambda: redact(f"{'x ' * 2_000}{prompts[5]}"), 7)
    return [
        Figure("look for the classes of diffusers, once a process", index, "s", 1),
        Figure("read one more class's signature", signature * 1e3, "ms", 1),
        Figure("refuse a job at RunPod's door, median", statistics.median(refused) * 1e3, "ms", 200),
        Figure("refuse a job at RunPod's door, p99", statistics.quantiles(refused, n=100)[98] * 1e3, "ms", 200),
        Figure("answer inspect", statistics.median(inspected) * 1e3, "ms", 20),
        Figure("redact a long line while 64 jobs run", redacting * 1e3, "ms", 7),
    ]


def _in_turn(runs: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of each, all of them run once before the first is run again."""
    rounds = [[seconds_of(work) for work in works] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
