"""`python -m benchmarks.gpu`: measure everything on one GPU within ten minutes, and write JSON, a table and a plot.

What was measured before is not measured again: after an interruption, or out of time, call it once more with the same
folder. With --tiny it runs on a CPU, to see that it does.
"""

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import report
from benchmarks.gpu.bench import REAL, TINY, Bench, Scale, matmul_rate
from benchmarks.gpu.measures import CHANGES, Measure, measures_of
from benchmarks.gpu.models import MODELS, Model

Save = Callable[[], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, model by model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("models", nargs="*", help=f"from {', '.join(model.name for model in MODELS)}; all by default")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="the folder of the figures")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which nothing new is begun")
    parser.add_argument("--tiny", action="store_true", help="tiny models, which a CPU runs too")
    given = parser.parse_args(arguments)
    unknown = {*given.models} - {model.name for model in MODELS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.tiny:
        parser.error("there is no GPU here; --tiny runs tiny models on the CPU")
    if device == "cpu":
        torch.set_num_threads(1)  # several that spin on few cores are many times slower
    ends = time.monotonic() + given.minutes * 60
    scale = Scale(device, **(TINY if given.tiny else REAL))
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "figures.json"
    results = json.loads(path.read_text()) if path.exists() else {"machine": machine(scale), "models": {}}

    def save() -> None:
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(results, indent=1))
        beside.replace(path)
        (given.out / "figures.md").write_text(report.table(results) + "\n")
        (given.out / "figures.svg").write_text(report.plot(results))

    complete = True
    for model in MODELS:
        if not given.models or model.name in given.models:
            complete &= measure(model, scale, results["models"].setdefault(model.name, {}), save, ends)
    save()
    print(report.table(results))
    if not complete:
        print("\nOut of time; the same command goes on from here.")
    return 0


def measure(model: Model, scale: Scale, done: dict[str, Any], save: Save, ends: float) -> bool:
    """Measure of one model what `done` lacks; False once time is out."""
    with Bench(model, scale) as bench:
        lasting = [item for item in measures_of(bench) if item[0] not in CHANGES]
        changing = [item for item in measures_of(bench) if item[0] in CHANGES]
        for name, what in lasting:
            if name not in done:
                if time.monotonic() > ends:
                    return False
                done[name] = attempt(what, bench)
                save()
    for name, what in changing:
        if name not in done:
            if time.monotonic() > ends:
                return False
            gc.collect()
            with Bench(model, scale) as bench:
                done[name] = attempt(what, bench)
            save()
    return True


def attempt(what: Measure, bench: Bench) -> dict[str, Any]:
    """Return what a measure finds, or why it failed: the others go on."""
    started = time.monotonic()
    try:
        found = what(bench)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
    return found | {"took_s": round(time.monotonic() - started, 2)}


def machine(scale: Scale) -> dict[str, Any]:
    """Return what the figures were made on, and when."""
    name = torch.cuda.get_device_name() if scale.device == "cuda" else platform.processor() or platform.machine()
    versions = {package: metadata.version(package) for package in ("torch", "diffusers", "transformers")}
    return {
        "device": name,
        "dtype": str(scale.dtype),
        "tiny": scale.tiny,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "matmul_flops": matmul_rate(scale.device, scale.dtype, tiny=scale.tiny),
        **versions,
    }


if __name__ == "__main__":
    sys.exit(main())
