"""A model over several GPUs: every part computes on its own one, and the image is that of one GPU, bit by bit."""

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import builders
from tests.asking import on_one_loop, perform
from tests.engine.fake_cards import KIND, fake_cards
from tests.images import assert_differs, encoded, gradient, pixels
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.device import Card, DeviceInfo, LoadPlan
from worker.core.errors import OutOfMemory, UnsupportedModel
from worker.engine.engine import DiffusersEngine
from worker.engine.resident import Budget
from worker.engine.spreading import spread

GIB = 2**30


class OnCards(DiffusersEngine):
    """The engine on two cards that do not exist. They are planned for as GPUs are."""

    def __init__(self, free: tuple[int, ...]) -> None:
        super().__init__("cpu", Budget(models=2, waiting_bytes=0))
        self._device = torch.device(KIND)
        self.free = free
        self.plans: list[LoadPlan] = []

    def device_info(self, *, cards: bool = False) -> DeviceInfo:
        each = tuple(Card(f"Card {number}", 24 * GIB, free) for number, free in enumerate(self.free))
        return DeviceInfo("cuda", "Card 0", 24 * GIB, self.free[0], each if cards else ())

    def _plan(self, *args: Any, **options: Any) -> LoadPlan:
        self.plans.append(replace(super()._plan(*args, **options), device=KIND))
        return self.plans[-1]

    def run(self, batch: Any, emit: Any) -> Any:
        with fake_cards():
            return super().run(batch, emit)

    def places(self, model: str) -> dict[str, str]:
        """Where each component of a resident model is."""
        (resident,) = (each for each in self._pool.residents if each.model == model)
        parts = resident.pipe.components.items()
        return {name: str(part.device) for name, part in parts if isinstance(part, torch.nn.Module)}


@pytest.fixture(scope="module")
def cards(task_models: Mapping[str, dict[str, Any]], zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A worker on two cards. Each model is there twice: `x` on the first alone, `x-spread` over both."""
    root = tmp_path_factory.mktemp("cards")
    spread = {
        "sd1": {"text_encoder": 1, "vae": 1},
        "sdxl": "balanced",
        "flux": {"text_encoder_2": 1, "vae": 1},
        "sd3": {"text_encoder": 1, "text_encoder_2": 1},
        "kontext": "balanced",
    }
    models = {name: task_models[name] | {"dtype": "float32"} for name in spread}
    for name, wanted in spread.items():
        models[f"{name}-spread"] = models[name] | {"device_map": wanted}
    builders.lora_for(zoo / "models/sdxl", zoo / "models/lora-sdxl.safetensors", seed=7)
    models["wrong"] = models["sd1"] | {"device_map": {"text_encoder_7": 1}}
    models["third"] = models["sd1"] | {"device_map": {"vae": 2}}
    (root / "models.yaml").write_text(json.dumps({"models": models}))
    engine = OnCards((20 * GIB, 20 * GIB))
    settings = Settings(
        models_yaml=root / "models.yaml",
        default_model="sd1",
        allowed_model_dirs=[zoo.parent, root.parent],
        volume_dir=root / "volume",
        warm_up=False,
    )
    worker = build_worker(settings, lambda: engine)
    return worker, engine


@pytest.fixture
def drawn(cards: Any) -> Callable[..., np.ndarray]:
    """Draws with a model of the worker on cards."""
    worker, _ = cards

    def draw(model: str, **fields: Any) -> np.ndarray:
        request = {"model": model, "prompt": "a red apple", "seed": 7, "width": 64, "height": 64, **fields}
        return pixels(on_one_loop(perform(worker, request, f"{model}-{len(str(fields))}")))

    return draw


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_the_image_is_that_of_one_card(drawn, cards, family):
    fields = {"image": encoded(gradient(64, 64)), "strength": 0.7}  # what the VAE has encoded meets noise
    alone, spread = drawn(family, **fields), drawn(f"{family}-spread", **fields)
    assert np.array_equal(alone, spread)
    places = cards[1].places(f"{family}-spread")
    assert {places["vae"]} == {"card:1"}
    assert "card:0" in places.values()


WAYS = {
    "text": ("sd1", {}),
    "inpaint": ("sd1", {"image": encoded(gradient(64, 64)), "mask_image": encoded(gradient(64, 64)), "strength": 0.8}),
    "sdxl": ("sdxl", {}),
    "sdxl image": ("sdxl", {"image": encoded(gradient(64, 64)), "strength": 0.7}),
    "sd3": ("sd3", {}),
    "sd3 image": ("sd3", {"image": encoded(gradient(64, 64)), "strength": 0.7}),
    "flux": ("flux", {}),
    "kontext": ("kontext", {"image": encoded(gradient(64, 64))}),
    "several": ("flux", {"num_images": 2}),
    "weighted words": ("sd1", {"prompt": "a (red:1.4) apple"}),
    "preview": ("flux", {"previews": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_a_job(drawn, way):
    family, fields = WAYS[way]
    assert np.array_equal(drawn(family, **fields), drawn(f"{family}-spread", **fields))


CONTROL = {"image": encoded(gradient(64, 64)), "scale": 0.9}
WORD = {"token": "apple"}
ADAPTERS = {
    "lora": ("sd1", lambda kept: {"loras": [f"{kept}/lora.safetensors"]}),
    "lora of two encoders": ("sdxl", lambda kept: {"loras": [f"{kept}/lora-sdxl.safetensors"]}),
    "vae": ("sd1", lambda kept: {"vae": f"{kept}/companions/vae"}),
    "controlnet": ("sd1", lambda kept: {"controlnets": [CONTROL | {"model": f"{kept}/companions/control-sd1"}]}),
    "t2i": ("sd1", lambda kept: {"controlnets": [CONTROL | {"model": f"{kept}/companions/t2i-sd1"}]}),
    "words": ("sd1", lambda kept: {"embeddings": [WORD | {"model": f"{kept}/companions/word-sd1.safetensors"}]}),
    "image prompt": (
        "sd1",
        lambda kept: {"ip_adapters": [{"model": f"{kept}/companions/ip-sd1.safetensors", **CONTROL}]},
    ),
    "hypernetwork": ("sd1", lambda kept: {"hypernetworks": [f"{kept}/companions/style.safetensors"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_land_on_the_part_that_they_are_for(drawn, zoo, kind):
    family, make = ADAPTERS[kind]
    fields = make(f"file:{zoo}/models")
    plain, alone, spread = drawn(f"{family}-spread"), drawn(family, **fields), drawn(f"{family}-spread", **fields)
    assert np.array_equal(alone, spread)
    assert_differs(spread, plain)
    assert np.array_equal(drawn(f"{family}-spread"), plain), "a job leaves no trace"


def test_a_map_that_does_not_go_is_refused_before_anything_is_loaded(drawn, cards):
    _, engine = cards
    before = engine.resident_models
    with pytest.raises(UnsupportedModel, match=r"device_map names text_encoder_7, .* weights are .*text_encoder, unet"):
        drawn("wrong")
    with pytest.raises(UnsupportedModel, match=r"device_map of third .* needs 3 GPUs and this process has 2"):
        drawn("third")
    assert set(engine.resident_models) <= set(before)


def test_each_card_has_to_have_room_for_its_own(drawn, cards):
    _, engine = cards
    engine.unload("sd1-spread")
    engine.free = (20 * GIB, GIB // 8)
    try:
        with pytest.raises(
            OutOfMemory, match=r"needs 0\.\d GiB on GPU 1 for text_encoder, vae, and Card 1 has 0\.1 GiB"
        ):
            drawn("sd1-spread")
    finally:
        engine.free = (20 * GIB, 20 * GIB)
    drawn("sd1-spread")
    assert engine.plans[-1].card_bytes[1] > GIB // 8


def test_a_model_that_goes_leaves_both_cards(drawn, cards):
    _, engine = cards
    drawn("sd1-spread")
    (pipe,) = (each.pipe for each in engine._pool.residents if each.model == "sd1-spread")
    parts = [weakref.ref(each) for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
    del pipe
    assert engine.unload("sd1-spread")
    assert not [part() for part in parts if part() is not None]


def test_a_call_that_fails_in_a_part_leaves_its_hooks_as_they_were():
    class Part(torch.nn.Module):
        def forward(self, x):
            if x.shape[0] > 1:
                raise ValueError("one at a time")
            return {"y": (x + 1, [x])}

    pipe = SimpleNamespace(components={"unet": torch.nn.Identity(), "reader": torch.nn.Sequential(Part())})
    plan = LoadPlan(Path(), "x", "float32", KIND, "none", 0, 0, cards={"reader": 1})
    with fake_cards():
        spread(pipe, plan)
        for _ in range(2):
            with pytest.raises(ValueError, match="one at a time"):
                pipe.components["reader"](torch.ones(2).to("card:0"))
            output = pipe.components["reader"](torch.ones(1).to("card:0"))["y"]
            assert [str(each.device) for each in (output[0], *output[1])] == ["card:0"] * 2
        inner = pipe.components["reader"][0](torch.ones(1).to("card:1"))
        assert str(inner["y"][0].device) == "card:0", "what is called from outside answers to the first card"
