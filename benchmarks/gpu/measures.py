"""What is measured of each model: every lever alone and together, batches, a LoRA, memory modes, loading."""

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench, psnr
from worker.engine.adapters.attaching import Placed
from worker.engine.adapters.changes import LowRank
from worker.engine.adapters.merging import MergeCache
from worker.engine.adapters.mixing import Mixture, mixed
from worker.engine.levers.row import Lever
from worker.engine.levers.table import LEVERS

Outcome = dict[str, Any]
Measure = Callable[[Bench], Outcome]


def plain(bench: Bench) -> Outcome:
    """The first call, then how fast it is once it is warm."""
    first = bench.seconds(bench.scale.short)
    second = bench.seconds(bench.scale.short)
    facts = {"build_s": bench.build_s, "first_call_s": first, "first_call_penalty_s": first - second}
    return bench.pace() | facts | _memory(bench)


def floor(bench: Bench) -> Outcome:
    """The operations of a call, from which the least time follows that it can take."""
    return bench.flops()


def with_levers(bench: Bench, levers: tuple[Lever, ...]) -> Outcome:
    """A call with these levers against a plain one: seconds, the price of making ready, and how near the image is."""
    whole = any(lever.tier == "fast" for lever in levers)  # a cache of steps does nothing in short calls
    steps = bench.model.steps if whole and not bench.scale.tiny else bench.scale.long
    before = bench.draw(steps)
    with bench.having(levers):
        ready_s = bench.seconds(bench.scale.short)
        image = bench.draw(steps)
        pace = {"call_s": bench.seconds(steps), "steps": steps} if whole else bench.pace()
    after = bench.draw(steps)
    return pace | {"ready_s": ready_s, "psnr_db": psnr(image, before), "restored": psnr(after, before) is None}


def batches(bench: Bench, size: int) -> Outcome:
    """Images a second for calls of more and more images."""
    rows = {}
    for count in bench.scale.batches:
        bench.seconds(bench.scale.short, size, count)
        pace = bench.pace(size, count, runs=1)
        rows[str(count)] = pace | {"images_per_s": count / max(pace["call_s"], 1e-9)}
    return {"size": size, "counts": rows}


def lora(bench: Bench) -> Outcome:
    """A LoRA of rank 16 on every attention layer: put on for the first time, once more, and what a step costs."""
    part, changes = bench.part, _changes(bench)
    cache, seconds = MergeCache(1, 2**40), []
    bare = bench.pace(runs=1)
    with_it: dict[str, float] = {}
    for _ in range(2):
        bench.sync()
        started = bench.clock()
        with cache.applied(bench.pipe, part, "bench", changes) as others:
            bench.sync()
            seconds.append(bench.clock() - started)
            if len(seconds) == 2:
                with_it = bench.pace(runs=1)
    return {
        "layers": len(changes),
        "in_hooks": len(others),
        "first_s": seconds[0],
        "again_s": seconds[1],
        "step_ratio": with_it["step_s"] / max(bare["step_s"], 1e-9),
    }


def mixed_loras(bench: Bench) -> Outcome:
    """Four images in one call, each with a LoRA of its own, against one after the other with merged weights."""
    count = bench.scale.batches[-1] if bench.scale.tiny else 4
    names = [str(number) for number in range(count)]
    mixture = Mixture(((),) * count, {name: number for number, name in enumerate(names)})
    alone, together = bench.pace(runs=1), bench.pace(count=count, runs=1)
    with mixed(bench.pipe, mixture, [_changes(bench) for _ in names]), mixture.calling(names, names):
        bench.seconds(bench.scale.short, count=count)
        pace = bench.pace(count=count, runs=1)
    step = pace["step_s"]
    return pace | {
        "of_apart": step / max(count * alone["step_s"], 1e-9),
        "of_plain": step / max(together["step_s"], 1e-9),
    }


def _changes(bench: Bench) -> list[Placed]:
    """Return a LoRA of rank 16 on every attention layer."""
    layers = [layer for layer in bench.part.named_modules() if isinstance(layer[1], nn.Linear) and "attn" in layer[0]]
    return [
        (
            bench.model.part,
            name,
            LowRank(torch.randn(16, layer.in_features), torch.randn(layer.out_features, 16), None, None, 1e-4),
            1.0,
        )
        for name, layer in layers
    ]


def loading(bench: Bench) -> Outcome:
    """The denoiser written to disk and read into the device's memory again, against the disk's own speed."""
    with tempfile.TemporaryDirectory() as folder:
        bench.part.save_pretrained(folder)
        files = sorted(Path(folder).glob("*.safetensors"))
        _forget(files)
        started = bench.clock()
        size = sum(_read(path) for path in files)
        raw_s = bench.clock() - started
        _forget(files)
        started = bench.clock()
        loaded = type(bench.part).from_pretrained(folder, dtype=bench.scale.dtype, use_safetensors=True)
        loaded.to(bench.scale.device)
        bench.sync()
        load_s = bench.clock() - started
        del loaded
    return {"bytes": size, "raw_s": raw_s, "load_s": load_s, "of_raw": raw_s / max(load_s, 1e-9)}


def offloaded(bench: Bench, way: str) -> Outcome:
    """A call with weights that lie in the machine's memory until they are needed."""
    pipe, device = bench.pipe, torch.device(bench.scale.device)
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        options = {"use_stream": True} if device.type == "cuda" else {}
        bench.part.enable_group_offload(device, torch.device("cpu"), offload_type="leaf_level", **options)
    bench.seconds(bench.scale.short)
    return bench.pace(runs=1) | _memory(bench)


def layerwise_fp8(bench: Bench) -> Outcome:
    """A call with weights kept in fp8 and computed with in the model's dtype."""
    before = bench.draw(bench.scale.long)
    bench.part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=bench.scale.dtype)
    bench.seconds(bench.scale.short)
    image = bench.draw(bench.scale.long)
    return bench.pace(runs=1) | {"psnr_db": psnr(image, before)} | _memory(bench)


def measures_of(bench: Bench) -> Iterator[tuple[str, Measure]]:
    """Yield what is measured of a model, by name. The last ones change it for good: each has a model of its own."""
    yield "plain", plain
    yield "floor", floor
    levers = tuple(lever for lever in LEVERS if lever.applies(bench.ground))
    for lever in levers:
        yield f"lever {lever.name}", partial(with_levers, levers=(lever,))
    for tier, allowed in (("exact", ("exact",)), ("fast", ("exact", "high", "fast"))):
        together = tuple(lever for lever in levers if lever.tier in allowed)
        if len(together) > 1:
            yield f"together {tier}", partial(with_levers, levers=together)
    for size in dict.fromkeys((bench.scale.small, bench.scale.size)):
        yield f"batches {size}", partial(batches, size=size)
    yield "lora", lora
    yield "loras mixed", mixed_loras
    yield "loading", loading
    yield "layerwise fp8", layerwise_fp8
    if bench.scale.device == "cuda":
        yield "offload group", partial(offloaded, way="group")
        yield "offload model", partial(offloaded, way="model")


# After these a model is not what it was.
CHANGES = ("layerwise fp8", "offload group", "offload model")


def _memory(bench: Bench) -> Outcome:
    if bench.scale.device != "cuda":
        return {}
    return {"peak_gb": torch.cuda.max_memory_allocated() / 2**30}


def _forget(files: list[Path]) -> None:
    """Have the machine forget what it holds of these files, so that a read is a read."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> int:
    total = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(2**24):
            total += len(chunk)
    return total
