"""The measure of models that take turns with one of them on the device. Wall seconds of loading, in one run."""

import asyncio
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.figures import Figure
from worker.app.settings import Settings
from worker.core.result import ignore_progress
from worker.transport.job_input import read_input
from worker.wire.result import encode_answer

_DEMO = Path(__file__).resolve().parent.parent / "models/demo"


def residency() -> list[Figure]:
    """A, B, A, B …: a load of a model that made room for another, against its first."""
    import torch

    from worker.app.build import build_worker

    torch.set_num_threads(1)

    async def seconds(folder: Path) -> dict[str, list[float]]:
        models = {name: {"source": f"file:{folder / name}"} for name in "ab"}
        (folder / "models.yaml").write_text(json.dumps({"models": models}))
        settings = Settings(
            models_yaml=folder / "models.yaml",
            default_model="a",
            allowed_model_dirs=[folder],
            volume_dir=folder / "volume",
            device="cpu",
            warm_up=False,
            max_resident_models=1,
        )
        worker = build_worker(settings)
        loads: dict[str, list[float]] = {"a": [], "b": []}
        for index in range(8):
            job = {"model": "ab"[index % 2], "prompt": "a red apple", "seed": 7, "num_inference_steps": 2}
            answer = await worker.operations.perform(read_input(job), f"bench-{index}", ignore_progress)
            loads["ab"[index % 2]].append(encode_answer(answer)["timings"]["load_s"])
        return loads

    with tempfile.TemporaryDirectory() as name:
        for model in "ab":
            shutil.copytree(_DEMO, Path(name) / model)
        loads = asyncio.run(seconds(Path(name)))
    first, later = loads["b"][0], statistics.median(loads["b"][1:] + loads["a"][1:])  # the very first has imports in it
    return [
        Figure("first load of a model", first * 1e3, "ms", 1),
        Figure("its load after another had its place", later * 1e3, "ms", 6),
        Figure("the second against the first", later / first, "x", 6, at_most=0.2),
    ]
