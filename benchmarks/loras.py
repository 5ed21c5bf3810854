"""The measures of LoRAs: what a step costs with them, at real widths, and what it takes to put them on. CPU seconds.

A step is one forward pass of one block as wide as the model's own; put on are LoRAs of a model that has all of its
layers, but narrow ones, against diffusers' `load_lora_weights` of the same files.
"""

import asyncio
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.figures import Figure

_DEMO = Path(__file__).resolve().parent.parent / "models/demo"
_RANK = 16
_ALL = ("attn", "ff.", "proj_mlp", "proj_out")


def lora_steps() -> list[Figure]:
    """A step with 1 and 3 LoRAs against one without, at the widths of SDXL and FLUX.1, for 1 and 4 images."""
    import torch

    torch.set_num_threads(1)
    figures = []
    for name, block, inputs in _blocks():
        for images in (1, 4):
            ratios, hooked = _step_ratios(block, inputs(images))
            for count, ratio in ratios.items():
                figures.append(Figure(f"step of {name}, {count} LoRA, {images} at once", ratio, "x", 5, at_most=1.03))
            figures.append(Figure(f"the same, 3 LoRAs in hooks, {images} at once", hooked, "x", 5))
    return figures


def _blocks() -> list[tuple[str, Any, Callable[[int], dict[str, Any]]]]:
    """Return a block of SDXL and one of FLUX.1, with what makes their input for some images."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock
    from torch import randn as x

    sdxl = BasicTransformerBlock(1280, 20, 64, cross_attention_dim=2048)
    flux = FluxSingleTransformerBlock(3072, 24, 128)

    def for_flux(n: int) -> dict[str, Any]:
        hidden = {"hidden_states": x(n, 16, 3072), "encoder_hidden_states": x(n, 8, 3072)}
        return {**hidden, "temb": x(n, 3072), "image_rotary_emb": (x(24, 128), x(24, 128))}

    def for_sdxl(n: int) -> dict[str, Any]:
        return {"hidden_states": x(n, 64, 1280), "encoder_hidden_states": x(n, 77, 2048)}

    for block in (sdxl, flux):
        block.eval().requires_grad_(False)
    return [("SDXL, 1280", sdxl, for_sdxl), ("FLUX.1, 3072", flux, for_flux)]


def lora_mixing() -> list[Figure]:
    """A step of four jobs in one call, each with a LoRA of its own, against four calls; of SDXL's and FLUX.1's width.

    Each of the four has its LoRA merged already: their switches cost nothing here.
    """
    import torch

    torch.set_num_threads(1)
    figures = []
    for name, block, inputs in _blocks():
        one, four = inputs(1), inputs(4)
        pipe = SimpleNamespace(components={"transformer": block}, transformer=block)
        with tempfile.TemporaryDirectory() as folder:
            files = [_file(block, "transformer", Path(folder) / f"{seed}.safetensors", seed, _ALL) for seed in range(4)]
            together, apart, plain = _mixing_seconds(pipe, files, one, four)
        figures += [
            Figure(f"four jobs, a LoRA each, in one call against four, {name}", together / apart, "x", 5, at_most=1.0),
            Figure("the same call, against one without LoRAs", together / plain, "x", 5),
        ]
    ratio = asyncio.run(_served_ratio())
    return [*figures, Figure("8 jobs of 4 LoRAs served, BATCH_SIZE 4 against 1", ratio, "x", 5, at_most=1.0)]


async def _served_ratio() -> float:
    """Return the CPU seconds of eight jobs of the demo model, two for each LoRA, in shared calls against apart."""
    from diffusers import DiffusionPipeline

    from worker.app.build import build_worker
    from worker.app.settings import Settings
    from worker.core.result import ignore_progress
    from worker.transport.job_input import read_input

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        demo = shutil.copytree(_DEMO, root / "demo")
        pipe = DiffusionPipeline.from_pretrained(demo)
        part = "unet" if hasattr(pipe, "unet") else "transformer"
        for seed in range(4):
            _write(getattr(pipe, part), part, root / f"{seed}.safetensors", seed)
        (root / "models.yaml").write_text(json.dumps({"models": {"demo": {"source": f"file:{demo}"}}}))
        places = {"models_yaml": root / "models.yaml", "default_model": "demo", "allowed_model_dirs": [root]}
        options = {"device": "cpu", "warm_up": False, "batch_timeout_ms": 50, "levers": "off"}
        workers = {
            size: build_worker(Settings(**places, **options, volume_dir=root / str(size), batch_size=size))
            for size in (1, 4)
        }

        async def serve(size: int, turn: int) -> float:
            async def job(number: int) -> None:
                fields = {"prompt": "a red apple", "seed": number, "num_inference_steps": 4}
                fields["loras"] = [f"file:{root}/{number % 4}.safetensors"]
                read = read_input(fields)
                await workers[size].operations.perform(read, f"bench-{size}-{turn}-{number}", ignore_progress)

            started = time.process_time()
            await asyncio.gather(*map(job, range(8)))
            return time.process_time() - started

        seconds: dict[int, list[float]] = {1: [], 4: []}
        for turn in range(6):  # the first loads the model
            for size, each in seconds.items():
                each.append(await serve(size, turn))
    return min(seconds[4][1:]) / min(seconds[1][1:])


def _mixing_seconds(pipe: Any, files: Sequence[Any], one: Any, four: Any) -> tuple[float, float, float]:
    """Return the CPU seconds of one call for four LoRAs, of four calls for one, and of a call without any."""
    from worker.engine.adapters.lora import LoraCache
    from worker.engine.adapters.mixing import Mixture

    cache, mixing, block = LoraCache(4), _host(pipe), pipe.transformer
    mixing.mixture = Mixture.of({str(index): (file,) for index, file in enumerate(files)})
    seconds: dict[str, list[float]] = {"together": [], "apart": [], "plain": []}
    names = [*mixing.mixture.set_of]
    for _ in range(6):  # the first makes everything ready
        with cache.applied(mixing, ()), mixing.mixture.calling(names, names):
            block(**four)
            seconds["together"].append(_cpu(lambda: block(**four)))
        each = []
        for file in files:
            with cache.applied(_host(pipe), [file]):
                each.append(_cpu(lambda: block(**one)))
        seconds["apart"].append(sum(each))
        seconds["plain"].append(_cpu(lambda: block(**four)))
    return min(seconds["together"][1:]), min(seconds["apart"][1:]), min(seconds["plain"][1:])


def lora_switching() -> list[Figure]:
    """A LoRA's first use and a switch between two that are there, against `load_lora_weights`, and 50 switches."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.set_num_threads(1)
    nothing = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(4, 4, 8),
        cross_attention_dim=64,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    transformer = FluxTransformer2DModel(
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipes = {
        "SDXL's layers": StableDiffusionXLPipeline(unet=unet, scheduler=scheduler, **nothing),
        "FLUX.1's layers": FluxPipeline(transformer=transformer, scheduler=scheduler, **nothing),
    }
    gc.collect()
    gc.freeze()  # as in a worker: what was imported is not looked through again
    return [figure for name, pipe in pipes.items() for figure in _switching(name, pipe)]


def _step_ratios(block: Any, inputs: dict[str, Any]) -> tuple[dict[int, float], float]:
    """Return the cost of a step with 1 and 3 LoRAs, and with 3 in hooks, against that of one without."""
    from worker.engine.adapters.lora import LoraCache
    from worker.engine.adapters.merging import MergeCache

    pipe = SimpleNamespace(components={"transformer": block}, transformer=block)
    with tempfile.TemporaryDirectory() as name:
        files = [_file(block, "transformer", Path(name) / f"{seed}.safetensors", seed, _ALL) for seed in range(3)]
        ways: dict[Any, tuple[LoraCache, Sequence[Any]]] = {
            "bare": (LoraCache(4), []),
            1: (LoraCache(4), files[:1]),
            3: (LoraCache(4), files),
            "hooks": (LoraCache(4, MergeCache(4, 0)), files),
        }
        seconds: dict[Any, list[float]] = {way: [] for way in ways}
        for _ in range(5):
            for way, (cache, adapters) in ways.items():
                with cache.applied(_host(pipe), adapters):
                    block(**inputs)
                    seconds[way].append(_cpu(lambda: block(**inputs)))
    # The least disturbed of each: what differs between them is the work, and all else is the machine's.
    best = {way: min(each) for way, each in seconds.items()}
    return {count: best[count] / best["bare"] for count in (1, 3)}, best["hooks"] / best["bare"]


def _switching(name: str, pipe: Any) -> list[Figure]:
    from worker.engine.adapters.lora import LoraCache

    part = "unet" if hasattr(pipe, "unet") else "transformer"
    model = getattr(pipe, part).eval().requires_grad_(False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.safetensors" for seed in range(4)]
        for seed, path in enumerate(paths):
            _write(model, part, path, seed)
        cache, host = LoraCache(4), _host(pipe)

        def switch(adapters: Sequence[Any]) -> None:
            with cache.applied(host, adapters):
                pass

        reading = [_cpu(lambda path=path: _read(path)) for path in paths]
        files = [_read(path) for path in paths]
        first = [_cpu(lambda file=file: switch([file])) for file in files]
        resident = [_cpu(lambda turn=turn: switch([files[turn % 4]])) for turn in range(50)]
        same = all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
        theirs = []
        for path in paths[:3]:
            theirs.append(_cpu(lambda path=path: pipe.load_lora_weights(path)))
            pipe.unload_lora_weights()
    loading = statistics.median(theirs)
    return [
        Figure(f"load_lora_weights, {name}", loading * 1e3, "ms", 3),
        Figure(f"look at a LoRA file, with its digest, {name}", statistics.median(reading) * 1e3, "ms", 4),
        Figure(f"first use of a LoRA, {name}", statistics.median(first) * 1e3, "ms", 4),
        Figure("diffusers' time against it", loading / statistics.median(first), "x", 4, at_least=15),
        Figure(f"switch between LoRAs, {name}", statistics.median(resident) * 1e3, "ms", 50),
        Figure("diffusers' time against it", loading / statistics.median(resident), "x", 50, at_least=60),
        Figure("weights bit-equal after 50 switches", float(same), "of 1", 1, at_least=1),
    ]


def _file(model: Any, part: str, path: Path, seed: int, words: Sequence[str]) -> Any:
    """Write a LoRA, and read it as a job's."""
    _write(model, part, path, seed, words)
    return _read(path)


def _write(model: Any, part: str, path: Path, seed: int, words: Sequence[str] = ("attn",)) -> None:
    """Write a LoRA of every linear layer of attention, or of other parts by their names."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and any(
            word in name for word in ("attn", "ff.", "proj_mlp", "proj_out")
        ):
            sizes = {"lora_A": (_RANK, module.in_features), "lora_B": (module.out_features, _RANK)}
            for half, (rows, columns) in sizes.items():
                tensors[f"{part}.{name}.{half}.weight"] = torch.randn(rows, columns, generator=generator) * 0.02
    save_file(tensors, path)


def _read(path: Path) -> Any:
    from worker.core.adapter import Adapter, LoraFiles
    from worker.core.model import LoraSpec, ModelFiles
    from worker.service.local.weights import examine_lora

    file = examine_lora(path)
    return LoraFiles(
        Adapter(LoraSpec(model=path.name)),
        ModelFiles(path, path.stat().st_size),
        file.detection,
        file.sha256,
        keys=file.keys,
        scaling=file.scaling,
    )


def _host(pipe: Any) -> Any:
    from worker.engine.adapters.host import Host
    from worker.engine.resident import Resident

    host = Host(Resident("bench", None, pipe, None), type(pipe).__name__, "bench")  # type: ignore[arg-type]
    host.pipe = pipe
    return host


def _cpu(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started
