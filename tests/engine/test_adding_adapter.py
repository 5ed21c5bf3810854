"""Adding a kind of adapter is one row in each of three tables: nothing else hears of it."""

import json
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.hypernetworks import flat, pickled, told
from tests.images import pixels
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.catalog.interface.adapters import ADAPTERS, AdapterKind
from worker.core.adapter import AdapterFiles
from worker.core.model import AdapterSpec, Kind
from worker.engine.adapters.host import Effect, Host, reports_of
from worker.engine.adapters.stack import APPLIERS, Applier
from worker.service.local.adapters.plain import provide_file
from worker.service.local.adapters.providers import PROVIDERS, each

# What a file of AnimateDiff for Stable Diffusion 1.x has, as far as the detector looks.
TENSORS = {f"down_blocks.{at}.motion_modules.0.norm.weight": torch.full((320,), 0.5) for at in (0, 3)}

MODELS = ("sd1", "sdxl")


class ToySpec(AdapterSpec):
    """A toy, which adds its number to all that the UNet predicts."""

    field: ClassVar[str] = "toys"

    weight: float = 1.0
    weight_name: str | None = None


@contextmanager
def added(host: Host, toys: Sequence[AdapterFiles[Any]]):
    """A hook for each toy, for as long as the job draws."""
    with ExitStack() as stack:
        for toy in toys:
            number = float(load_file(toy.files.root)[next(iter(TENSORS))][0]) * toy.adapter.spec.weight
            hook = host.pipe.unet.conv_out.register_forward_hook(lambda _, __, output, number=number: output + number)
            stack.callback(hook.remove)
        yield Effect(reports_of(toys, "weight"))


@pytest.fixture
def door(settings, zoo, tmp_path, monkeypatch):
    """A worker of two models that was built with a seventh kind in its tables."""
    models = {name: {"source": f"file:{zoo}/models/{name}", "defaults": {"num_inference_steps": 2}} for name in MODELS}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))
    own = {"models_yaml": tmp_path / "models.yaml", "default_model": "sd1", "allowed_model_dirs": (zoo,)}
    takes = {"takes": lambda call: call.architecture is not None and call.architecture.id == "sd1"}
    kind = AdapterKind(ToySpec, "toy", (Kind.MOTION_MODULE,), "Toys, each with a number.", most=2, **takes)
    monkeypatch.setitem(ADAPTERS, "toys", kind)
    monkeypatch.setitem(PROVIDERS, "toys", each(provide_file))
    monkeypatch.setitem(APPLIERS, "toys", Applier(lambda *_: added))
    return build_door(build_worker(settings.model_copy(update=own)), concurrency=1)


async def handled(door, job_id, **fields):
    return await door.handle({"id": job_id, "input": {"prompt": "a red apple", "seed": 7, **fields}})


async def test_it_is_accepted_provided_applied_and_gone_afterwards(door, kept):
    toy = kept("toy.safetensors", TENSORS)
    plain = await handled(door, "before")
    answer = await handled(door, "with", toys=[{"model": toy, "weight": 2.0}])
    (report,) = answer["adapters"]
    assert (report["kind"], report["model"], report["weight"]) == ("motion-module", toy, 2.0)
    assert len(report["sha256"]) == 64
    assert np.abs(pixels(answer).astype(int) - pixels(plain)).max() >= 8
    assert np.array_equal(pixels(await handled(door, "after")), pixels(plain))
    again = await handled(door, "again", **answer["reproduce"]["input"])
    assert np.array_equal(pixels(again), pixels(answer))
    assert answer["reproduce"]["input"]["toys"] == [{"model": toy, "weight": 2.0}]


async def test_the_schema_offers_it_to_the_models_that_take_it(door):
    fields = {}
    for model in MODELS:
        answer = await door.handle({"id": model, "input": {"action": "schema", "model": model}})
        fields[model] = answer["properties"]
    assert fields["sd1"]["toys"]["anyOf"][0] == {"type": "array", "items": {"$ref": "#/$defs/ToySpec"}, "maxItems": 2}
    assert fields["sd1"]["toys"]["description"] == "Toys, each with a number."
    assert "toys" not in fields["sdxl"]


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"toys": [{"wieght": 1.0}]}, "unknown_parameter", "toys[0].wieght is not a known field; did you mean weight?"),
        ({"toys": ["org/a"] * 3}, "parameter_out_of_range", "toys must be a list of at most 2"),
        ({"toys": "org/a", "model": "sdxl"}, "unknown_parameter", "toys is not taken by sdxl"),
    ],
    ids=["unknown key", "too many", "other model"],
)
async def test_what_no_row_takes_is_refused_by_its_name(door, fields, code, message):
    answer = await handled(door, "refused", **fields)
    assert (answer["code"], answer["field"]) == (code, "toys")
    assert message in answer["error"]


async def test_a_file_of_another_kind_is_refused(door, kept):
    saved = pickled()
    style = kept("style.safetensors", flat(saved), told(saved))
    answer = await handled(door, "another", toys=style)
    assert (answer["code"], answer["field"]) == ("incompatible_adapter", "toys")
    assert "is a hypernetwork, not a toy; name a toy file." in answer["error"]
