"""IP-Adapters through RunPod's door, against diffusers' own loader; and what they leave behind: nothing."""

import dataclasses
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import SiglipImageProcessorPil

from tests import builders
from tests import image_prompts as tiny
from tests.fakes.engine import fresh_id
from tests.images import encoded, gradient, pixels
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import Settings
from worker.engine.adapters import image_prompts as engine_side
from worker.engine.loader import place

RED = np.full((40, 30, 3), (200, 30, 30), np.uint8)
SKY = np.ascontiguousarray(gradient(50, 40)[::-1])


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Tiny models of four families, adapters of every layout for them, and one image encoder for each library."""
    root = tmp_path_factory.mktemp("prompted")
    models = root / "models"
    for name, build in (("sd1", builders.tiny_sd1), ("sdxl", builders.tiny_sdxl), ("flux", builders.tiny_flux)):
        build(models / name)
    builders.tiny_sd3(models / "sd3")
    tiny.clip_encoder(models / "ip/image_encoder")
    tiny.siglip_encoder(models / "ip3/image_encoder")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(models / "ip3/image_encoder")
    for layout in ("plain", "plus", "full-face"):
        tiny.save(tiny.unet_adapter(models / "sd1", layout=layout), models / f"ip/sd1-{layout}.safetensors")
        tiny.save(tiny.unet_adapter(models / "sdxl", layout=layout), models / f"ip/sdxl-{layout}.safetensors")
    tiny.save(tiny.unet_adapter(models / "sd1", seed=9), models / "ip/sd1-other.safetensors")
    for layout in ("plain", "xlabs"):
        tiny.save(tiny.flux_adapter(models / "flux", layout=layout), models / f"ip/flux-{layout}.safetensors")
    tiny.save(tiny.sd3_adapter(models / "sd3"), models / "ip3/sd3-plain.safetensors")
    builders.lora_for(models / "sd1", models / "lora.safetensors", seed=5)
    served = {
        name: {
            "source": f"file:models/{name}",
            "tasks": ["text-to-image", "image-to-image", "inpainting"],
            "defaults": {"num_inference_steps": 3, "width": 64, "height": 64},
        }
        for name in ("sd1", "sdxl", "flux", "sd3")
    }
    (root / "models.yaml").write_text(json.dumps({"models": served}))
    return root


class Shop:
    """A worker behind RunPod's door."""

    def __init__(self, root: Path, volume: Path) -> None:
        self.root = root
        settings = Settings(
            models_yaml=root / "models.yaml",
            default_model="sd1",
            volume_dir=volume,
            device="cpu",
            warm_up=False,
            max_resident_models=4,
        )
        self.worker = build_worker(settings)
        self._door = build_door(self.worker, concurrency=1)

    async def draw(self, **fields: Any) -> dict[str, Any]:
        return await self._door.handle({"id": fresh_id(), "input": {"prompt": "a red apple", "seed": 7, **fields}})

    def file(self, name: str) -> str:
        return f"file:{self.root}/models/{'ip3' if 'sd3' in name else 'ip'}/{name}.safetensors"

    def prompt(self, name: str, *images: np.ndarray, scale: float = 1.0) -> dict[str, Any]:
        return {"model": self.file(name), "images": [encoded(item) for item in images], "scale": scale}

    @property
    def engine(self) -> Any:
        return self.worker.engine._engine

    def pipe(self, model: str = "sd1") -> Any:
        return next(item.pipe for item in self.engine._pool._residents.values() if item.model == model)


@pytest.fixture
def served(shop, tmp_path) -> Shop:
    return Shop(shop, tmp_path / "volume")


def directly(
    shop: Path, model: str, names: list[str], images: list[list[np.ndarray]], scales: list[float], **options: Any
) -> np.ndarray:
    """What diffusers draws after its own `load_ip_adapter`."""
    cls = getattr(diffusers, options.pop("cls", "DiffusionPipeline"))
    pipe = cls.from_pretrained(shop / "models" / model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if lora := options.pop("lora", None):
        pipe.load_lora_weights(lora)
    folder = shop / "models" / ("ip3" if model == "sd3" else "ip")
    files = [f"{name}.safetensors" for name in names]
    encoder = str(folder / "image_encoder")
    shown: Any = [[Image.fromarray(item) for item in items] for items in images]
    if model == "flux":
        place = {"image_encoder_pretrained_model_name_or_path": encoder, "image_encoder_dtype": torch.float32}
        pipe.load_ip_adapter(str(folder), weight_name=files, subfolder="", **place)
        pipe.set_ip_adapter_scale(scales[0])
    elif model == "sd3":
        pipe.load_ip_adapter(str(folder), weight_name=files[0], subfolder="", image_encoder_folder=encoder)
        pipe.set_ip_adapter_scale(scales[0])
        shown = shown[0][0]
    else:
        pipe.load_ip_adapter(str(folder), subfolder="", weight_name=files, image_encoder_folder="image_encoder")
        pipe.set_ip_adapter_scale(scales)
    arguments = {"prompt": "a red apple", "num_inference_steps": 3, "width": 64, "height": 64} | options
    image = pipe(ip_adapter_image=shown, generator=torch.Generator("cpu").manual_seed(7), **arguments).images[0]
    return np.asarray(image.convert("RGB"))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    "name",
    [
        *(f"{model}-{layout}" for model in ("sd1", "sdxl") for layout in ("plain", "plus", "full-face")),
        *("flux-plain", "flux-xlabs", "sd3-plain"),
    ],
)
async def test_an_image_prompts_as_it_does_with_diffusers_own_loader(served, shop, name):
    model = name.partition("-")[0]
    fields = {"model": model, "guidance_scale": 4.0}
    plain = pixels(await served.draw(**fields))
    answer = await served.draw(**fields, ip_adapters=served.prompt(name, RED, scale=0.8))
    drawn = pixels(answer)
    assert np.array_equal(drawn, directly(shop, model, [name], [[RED]], [0.8], guidance_scale=4.0))
    assert apart(drawn, plain) > 8
    assert apart(pixels(await served.draw(**fields, ip_adapters=served.prompt(name, SKY, scale=0.8))), drawn) > 8
    (report,) = answer["adapters"]
    assert (report["kind"], report["model"], report["weight"]) == ("ip-adapter", served.file(name), 0.8)
    assert len(report["sha256"]) == 64
    assert np.array_equal(pixels(await served.draw(**fields)), plain)  # and nothing of it stays


async def test_a_file_of_wrapped_modules_is_the_same_adapter(served, shop):
    plain = load_file(shop / "models/ip/sd1-plain.safetensors")
    tiny.save({f"module.{name}": tensor for name, tensor in plain.items()}, shop / "models/ip/sd1-wrapped.safetensors")
    wanted = pixels(await served.draw(ip_adapters=served.prompt("sd1-plain", RED)))
    assert np.array_equal(pixels(await served.draw(ip_adapters=served.prompt("sd1-wrapped", RED))), wanted)


async def test_without_guidance_there_is_no_negative_half(served, shop):
    answer = await served.draw(guidance_scale=1.0, ip_adapters=served.prompt("sd1-plus", RED))
    assert np.array_equal(pixels(answer), directly(shop, "sd1", ["sd1-plus"], [[RED]], [1.0], guidance_scale=1.0))


async def test_several_adapters_each_with_its_images_and_its_scale(served, shop):
    prompts = [
        served.prompt("sd1-plain", RED, SKY, scale=0.7),
        served.prompt("sd1-plus", SKY, scale=0.4),
        served.prompt("sd1-plain", SKY, scale=0.2),
    ]
    names = ["sd1-plain", "sd1-plus", "sd1-plain"]
    direct = directly(shop, "sd1", names, [[RED, SKY], [SKY], [SKY]], [0.7, 0.4, 0.2])
    assert np.array_equal(pixels(await served.draw(ip_adapters=prompts)), direct)
    swapped = pixels(await served.draw(ip_adapters=prompts[::-1]))
    assert apart(swapped, direct) <= 1  # sums in another order


async def test_two_images_prompt_flux_too(served, shop):
    answer = await served.draw(model="flux", ip_adapters=served.prompt("flux-plain", RED, SKY))
    assert np.array_equal(pixels(answer), directly(shop, "flux", ["flux-plain"], [[RED, SKY]], [1.0]))


@pytest.mark.parametrize("model", ["sd1", "flux", "sd3"])
async def test_scale_0_is_no_adapter(served, model):
    plain = pixels(await served.draw(model=model))
    answer = await served.draw(model=model, ip_adapters=served.prompt(f"{model}-plain", RED, scale=0))
    assert np.array_equal(pixels(answer), plain)
    assert answer["adapters"][0]["weight"] == 0


async def test_images_of_a_batch_are_those_of_single_jobs(served):
    prompts = served.prompt("sd1-plus", RED)
    several = await served.draw(ip_adapters=prompts, num_images=3)
    for index in range(3):
        alone = pixels(await served.draw(ip_adapters=prompts, seed=7 + index))
        assert apart(alone, pixels(several, index)) <= 1


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("model", "cls"), [("sd1", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("flux", "Flux")]
)
async def test_other_tasks_of_a_model_take_it_too(served, shop, model, cls):
    name = f"{model}-plain"
    image, mask = gradient(64, 64), np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    guided = {"strength": 0.7, "guidance_scale": 4.0}
    start = {"image": Image.fromarray(image), **guided}
    answer = await served.draw(model=model, image=encoded(image), **guided, ip_adapters=served.prompt(name, RED))
    direct = directly(shop, model, [name], [[RED]], [1.0], cls=f"{cls}Img2ImgPipeline", **start)
    assert apart(pixels(answer), direct) <= 1
    holes = {"image": encoded(image), "mask_image": encoded(mask), "strength": 0.9}
    plain = pixels(await served.draw(model=model, **holes))
    filled = pixels(await served.draw(model=model, **holes, ip_adapters=served.prompt(name, RED)))
    assert apart(filled[:, :32], plain[:, :32]) == 0
    assert apart(filled, plain) > 8


async def test_a_lora_and_an_adapter_work_at_once_in_either_order(served, shop):
    lora = f"{shop}/models/lora.safetensors"
    prompts = served.prompt("sd1-plain", RED, scale=0.6)
    styled = pixels(await served.draw(loras=[f"file:{lora}"]))
    both = pixels(await served.draw(loras=[f"file:{lora}"], ip_adapters=prompts))
    assert apart(both, directly(shop, "sd1", ["sd1-plain"], [[RED]], [0.6], lora=lora)) <= 2
    assert np.array_equal(pixels(await served.draw(loras=[f"file:{lora}"])), styled)
    assert np.array_equal(pixels(await served.draw(loras=[f"file:{lora}"], ip_adapters=prompts)), both)


def state(pipe: Any) -> dict[str, Any]:
    """Everything that an IP-Adapter touches, and every weight."""
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    return {
        "processors": {name: id(item) for name, item in denoiser.attn_processors.items()},
        "modules": [name for name, _ in denoiser.named_modules()],
        "names": sorted(vars(denoiser)),
        "config": {**vars(denoiser.config)},
        "parts": {name: id(part) for name, part in pipe.components.items() if isinstance(part, nn.Module) or not part},
        "index": dict(pipe.config),
        "weights": {key: (id(one), float(one.detach().double().sum())) for key, one in denoiser.named_parameters()},
    }


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["sd1", "flux", "sd3"])
async def test_a_job_that_fails_or_is_cancelled_midway_leaves_the_pipeline_as_it_was(served, model, monkeypatch):
    plain = pixels(await served.draw(model=model))
    before = state(served.pipe(model))
    prompts = served.prompt(f"{model}-plain", RED)
    drawn = pixels(await served.draw(model=model, ip_adapters=prompts))
    assert state(served.pipe(model)) == before

    stopped = await served.draw(model=model, ip_adapters=prompts, timeout_s=0.001)
    assert stopped["code"] == "job_timeout"
    assert state(served.pipe(model)) == before

    steps = []

    def cancelled(self: Any) -> None:
        steps.append(self)
        if len(steps) > 3:
            raise engine_side.UnsupportedModel("enough")

    with monkeypatch.context() as patch:
        patch.setattr("worker.core.job.Batch.check", cancelled)
        assert "error" in await served.draw(model=model, ip_adapters=prompts)
    assert state(served.pipe(model)) == before
    assert np.array_equal(pixels(await served.draw(model=model)), plain)
    assert np.array_equal(pixels(await served.draw(model=model, ip_adapters=prompts)), drawn)


async def test_an_adapter_of_other_layers_is_refused_and_changes_nothing(served, shop):
    plain = pixels(await served.draw())
    before = state(served.pipe())
    for name in ("sdxl-plain", "flux-plain"):
        refused = await served.draw(ip_adapters=served.prompt(name, RED))
        assert (refused["code"], refused["field"]) == ("incompatible_adapter", "ip_adapters")
        assert "does not fit sd1" in refused["error"]
    fewer = tiny.unet_adapter(shop / "models/sd1")
    fewer = {key: value for key, value in fewer.items() if not key.endswith("norm.bias")}
    tiny.save(fewer, shop / "models/ip/damaged.safetensors")
    refused = await served.draw(ip_adapters=served.prompt("damaged", RED))
    assert refused["code"] == "incompatible_adapter"
    assert state(served.pipe()) == before
    assert np.array_equal(pixels(await served.draw()), plain)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the adapters that were read."""
    seen: list[str] = []
    original: Callable[..., Any] = engine_side._read

    def read(file: Any) -> Any:
        seen.append(file.files.root.name)
        return original(file)

    monkeypatch.setattr(engine_side, "_read", read)
    return seen


async def test_the_last_two_adapters_stay_ready(served, reads):
    for name in ("sd1-plain", "sd1-plus", "sd1-plain", "sd1-other", "sd1-plus"):
        await served.draw(ip_adapters=served.prompt(name, RED))
    assert [name.partition(".")[0] for name in reads] == ["sd1-plain", "sd1-plus", "sd1-other", "sd1-plus"]


async def test_adapters_and_encoder_go_with_their_pipeline(served):
    await served.draw(ip_adapters=served.prompt("sd1-plain", RED))
    cache = served.engine._adapters._appliers["ip_adapters"][1].__self__
    assert (len(cache._caches), len(cache._encoders)) == (1, 1)
    assert served.engine.unload("sd1") == 1
    gc.collect()
    assert (len(cache._caches), len(cache._encoders)) == (0, 0)


async def test_what_reproduce_says_draws_the_same_image(served):
    first = await served.draw(ip_adapters=served.prompt("sd1-plain", RED))
    again = await served.draw(**first["reproduce"]["input"])
    assert np.array_equal(pixels(first), pixels(again))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    large = await served.draw(ip_adapters=served.prompt("sd1-plain", noise))
    assert "ip_adapters" not in large["reproduce"]["input"]
    assert any("ip_adapters" in warning for warning in large["warnings"])


@pytest.mark.slow
async def test_under_offloading_the_same_image_comes_out_and_the_hooks_are_as_before(served, shop):
    direct = directly(shop, "sd1", ["sd1-plus"], [[RED]], [1.0])
    plain = pixels(await served.draw())
    (resident,) = served.engine._pool._residents.values()
    resident.plan = dataclasses.replace(resident.plan, offload="model")
    place(resident.pipe, resident.plan)

    def hooks() -> list[str]:
        return [
            f"{part}.{name} {type(module._hf_hook).__name__}"
            for part, owner in resident.pipe.components.items()
            if isinstance(owner, nn.Module)
            for name, module in owner.named_modules()
            if hasattr(module, "_hf_hook")
        ]

    before = hooks()
    assert before
    for _ in range(2):
        assert np.array_equal(pixels(await served.draw(ip_adapters=served.prompt("sd1-plus", RED))), direct)
        assert hooks() == before
        assert np.array_equal(pixels(await served.draw()), plain)
