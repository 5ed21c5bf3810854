"""The measure of a cold load: 2 GB of weights from a disk that has none of them in memory, against reading the files.

Both sides are taken in turn, each from a page cache that was emptied of these files. The wall ratio is of the disk and
the processor together; the processor's own is beside it, and holds on a machine that others use.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.figures import Figure
from worker.core.device import LoadPlan
from worker.core.model import DType
from worker.service.local.completing import CONFIGS

_ROUNDS = 3
_BLOCK = 8 * 2**20
_STORED: DType = "float16"
_KINDS = ("repository", "single file")
_DTYPES: dict[str, DType] = {"the file's dtype": _STORED, "the default dtype": "bfloat16"}
Seconds = tuple[float, float]  # of the clock and of the processor


def loading() -> list[Figure]:
    """Stable Diffusion 1.5 in its true size, random weights in float16, loaded as it is and as bfloat16."""
    found: dict[tuple[str, str], list[tuple[Seconds, Seconds]]] = {}
    spawned = get_context("spawn")
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as name:  # /tmp may be memory
        folder = Path(name)
        with ProcessPoolExecutor(1, mp_context=spawned) as pool:
            pool.submit(_build, folder).result()
        with ProcessPoolExecutor(1, mp_context=spawned) as pool:
            pool.submit(_warm_up, folder).result()
            for _, kind, words in itertools.product(range(_ROUNDS), _KINDS, _DTYPES):
                files = _files(folder, kind)
                _read(files)  # a virtual disk's host keeps what was read last: both sides find it there
                raw = _timed(files, partial(_read, files))
                load = pool.submit(_load, folder, kind, _DTYPES[words]).result()
                found.setdefault((kind, words), []).append((raw, load))
    figures = []
    for (kind, words), pairs in found.items():
        wall, cpu = (statistics.median(raw[unit] / load[unit] for raw, load in pairs) for unit in (0, 1))
        figures += [
            Figure(f"cold load, {kind}, {words}, raw read against it", wall, "x", _ROUNDS, at_least=0.75, stretch=0.9),
            Figure("the same, processor time", cpu, "x", _ROUNDS),
        ]
    return figures


def _files(folder: Path, kind: str) -> list[Path]:
    return (
        sorted((folder / "repository").rglob("*.safetensors")) if kind == "repository" else [folder / "a.safetensors"]
    )


def _build(folder: Path) -> None:
    """Write the model as a repository and as a single file, and a tiny one that has all of its classes."""
    import shutil

    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.builders import tiny_sd1
    from tests.single_files import single_file

    root, config = folder / "repository", CONFIGS / "sd1"
    shutil.copytree(config, root)
    with torch.device("meta"):
        models = {
            "unet": UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config, subfolder="unet")),
            "vae": AutoencoderKL.from_config(AutoencoderKL.load_config(config, subfolder="vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(config, subfolder="text_encoder")),
        }
    noise = (torch.randn(4_000_000) * 0.02).half()
    for name, model in models.items():
        model.to_empty(device="cpu").half()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                for part in tensor.data.view(-1).split(len(noise)):
                    part.copy_(noise[: len(part)])
        model.save_pretrained(root / name)
    single_file(root, folder / "a.safetensors")
    tiny_sd1(folder / "tiny")


def _warm_up(folder: Path) -> None:
    import torch

    from worker.engine.loader import load_pipeline

    torch.set_num_threads(1)
    load_pipeline(_plan(folder / "tiny", None, "float32"))


def _load(folder: Path, kind: str, dtype: DType) -> Seconds:
    from worker.engine.loader import load_pipeline

    root = folder / ("repository" if kind == "repository" else "a.safetensors")
    plan = _plan(root, None if kind == "repository" else CONFIGS / "sd1", dtype)

    def load() -> None:
        pipe = load_pipeline(plan)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            for tensor in part.parameters():
                tensor.view(-1)[::1_024].float().sum()  # every page of it: what is mapped was not read yet

    return _timed(_files(folder, kind), load)


def _plan(root: Path, config: Path | None, dtype: DType) -> LoadPlan:
    return LoadPlan(
        root, "StableDiffusionPipeline", dtype, "cpu", "none", 1, 1,
        format="diffusers" if config is None else "safetensors", config=config,
    )  # fmt: skip


def _read(files: Sequence[Path]) -> None:
    block = bytearray(_BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def _timed(files: Sequence[Path], call: Callable[[], None]) -> Seconds:
    """Call it with nothing of the files in memory. Raises RuntimeError where the disk was not asked all the same."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, wall, cpu = _disk_bytes(), time.perf_counter(), time.process_time()
    call()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    if _disk_bytes() - before < 0.9 * sum(path.stat().st_size for path in files):
        raise RuntimeError("the files lie in memory: this folder is no disk, or another process has them mapped")
    return seconds


def _disk_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
