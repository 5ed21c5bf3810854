"""Hypernetworks against A1111's formula written down again, and through the RunPod door."""

import copy
import itertools

import numpy as np
import pytest
import torch

from tests.engine.test_generation import draw
from tests.engine.test_isolation import on_engine
from tests.hypernetworks import CROSS, SELF, flat, pickled, told
from tests.images import assert_all_differ, assert_differs, drawn_by_diffusers, pixels
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.core.errors import (
    CorruptFile,
    IncompatibleAdapter,
    UnknownParameter,
    UnsafeFormat,
    UnsupportedModel,
    WorkerError,
)

_ids = itertools.count()


def by_hand(saved, width, at, x, weight):
    """x + network(x) * weight, as the format's own program does it, layer by layer."""
    layers = saved[width][at]
    activation = {"relu": torch.relu, "swish": torch.nn.functional.hardswish, "linear": lambda y: y}[
        saved["activation_func"]
    ]
    places = sorted({int(name.split(".")[1]) for name in layers})
    linears = [place for place in places if layers[f"linear.{place}.weight"].ndim == 2]
    y = x
    for place in places:
        scale, bias = layers[f"linear.{place}.weight"], layers[f"linear.{place}.bias"]
        if place in linears:
            y = y @ scale.T + bias
            if place != linears[-1] or saved.get("activate_output", True):
                y = activation(y)
        else:
            y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * scale + bias
    return x + y * weight


@pytest.fixture
def trusting(settings):
    """A worker whose operator lets pickles be converted."""
    return build_worker(settings.model_copy(update={"allow_pickles": True}))


async def handled(worker, **fields):
    door = build_door(worker, concurrency=1)
    return await door.handle({"id": f"hyper-{next(_ids)}", "input": {"prompt": "a red apple", "seed": 7, **fields}})


STRUCTURES = [
    {},
    {"activation_func": "swish", "activate_output": False},
    {"activation_func": "linear"},
    {"is_layer_norm": True},
    {"is_layer_norm": True, "use_dropout": True, "activation_func": "swish"},
]


@pytest.mark.parametrize("said", STRUCTURES, ids=lambda said: "-".join(map(str, said)) or "usual")
@pytest.mark.quick_rows(2)
async def test_it_draws_what_a1111s_formula_says(worker, zoo, kept, said):
    saved = pickled(**said)
    style = kept("style.safetensors", flat(saved), told(saved))
    answer = await handled(worker, hypernetworks=[{"model": style, "weight": 0.7}])
    assert [(item["kind"], item["weight"]) for item in answer["adapters"]] == [("hypernetwork", 0.7)]

    import diffusers

    pipe = copy.deepcopy(diffusers.DiffusionPipeline.from_pretrained(zoo / "models/sd1", dtype=torch.float32))
    pipe.set_progress_bar_config(disable=True)
    changed = set()
    for path, module in pipe.unet.named_modules():  # the layers themselves, not hooks on them
        if path.endswith(("attn1.to_k", "attn1.to_v", "attn2.to_k", "attn2.to_v")) and module.in_features in saved:
            at, width, forward = int(path.endswith("to_v")), module.in_features, module.forward
            module.forward = lambda x, at=at, width=width, forward=forward: forward(by_hand(saved, width, at, x, 0.7))
            changed.add((width, path[-10:]))
    assert {width for width, _ in changed} == {CROSS, SELF}
    generator = torch.Generator().manual_seed(7)
    reference = np.asarray(pipe("a red apple", num_inference_steps=3, generator=generator).images[0])
    difference = np.abs(pixels(answer).astype(int) - reference)
    assert difference.max() <= 1
    plain = drawn_by_diffusers(zoo / "models/sd1", 7, prompt="a red apple", num_inference_steps=3)
    assert_differs(pixels(answer).astype(int), plain)


@pytest.mark.slow
async def test_a_pickle_keeps_its_structure_when_it_is_converted(trusting, kept):
    saved = pickled(activation_func="swish", activate_output=False, is_layer_norm=True)
    first = await handled(trusting, hypernetworks=[kept("style.pt", saved)])
    second = await handled(trusting, hypernetworks=[kept("style.safetensors", flat(saved), told(saved))])
    bare = await handled(trusting, hypernetworks=[kept("bare.safetensors", flat(saved))])
    assert np.array_equal(pixels(first), pixels(second))
    assert_differs(pixels(first), pixels(bare))


async def test_the_oldest_names_draw_the_same(worker, kept):
    saved = pickled(activation_func="linear")
    second = await handled(worker, hypernetworks=[kept("style.safetensors", flat(saved))])
    old = {name.replace("linear.0", "linear1").replace("linear.2", "linear2"): t for name, t in flat(saved).items()}
    third = await handled(worker, hypernetworks=[kept("old.safetensors", old)])
    assert np.array_equal(pixels(second), pixels(third))


async def test_weight_0_changes_nothing_and_nothing_is_left_bit_for_bit(worker, kept):
    style = kept("style.safetensors", flat(pickled()), {"activation_func": "relu"})
    plain = pixels(await handled(worker))

    def hooks(pipe):
        return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in pipe.unet.modules())

    before = on_engine(worker, hooks)
    none = await handled(worker, hypernetworks=[{"model": style, "weight": 0}])
    assert np.array_equal(pixels(none), plain)
    full = await handled(worker, hypernetworks=[style])
    assert_differs(pixels(full), plain)
    assert on_engine(worker, hooks) == before
    assert np.array_equal(pixels(await handled(worker)), plain)
    assert np.array_equal(pixels(await handled(worker, hypernetworks=[style])), pixels(full))  # from the cache


async def test_several_are_applied_in_their_order_and_beside_a_lora(worker, zoo, kept):
    first = kept("a.safetensors", flat(pickled()), {"activation_func": "relu"})
    second = kept("b.safetensors", flat(pickled((CROSS,))), {"activation_func": "tanh"})
    lora = f"file:{zoo}/models/lora.safetensors"
    drawn = [
        pixels(await handled(worker, **fields))
        for fields in (
            {"hypernetworks": [first]},
            {"hypernetworks": [first, second]},
            {"hypernetworks": [second, first]},
            {"hypernetworks": [first, second], "loras": [lora]},
        )
    ]
    assert_all_differ(*drawn)


async def test_every_task_takes_them(worker, kept):
    from tests.images import encoded, gradient

    style = kept("a.safetensors", flat(pickled()), {"activation_func": "relu"})
    image = {"image": encoded(gradient(64, 64)), "strength": 0.7}
    changed = await handled(worker, **image, hypernetworks=[style])
    assert_differs(pixels(changed), pixels(await handled(worker, **image)))


REFUSED = {
    "other widths": (flat(pickled((48,))), None, IncompatibleAdapter, "attention of 48 channels"),
    "sd2": (flat(pickled((1024,))), None, IncompatibleAdapter, "was made for Stable Diffusion 2"),
    "not one": ({"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, None, IncompatibleAdapter, "not a hypernetwork"),
    "activation": (flat(pickled()), {"activation_func": "magic"}, UnsupportedModel, "activation magic"),
    "half": ({k: v for k, v in flat(pickled()).items() if "32.1" not in k}, None, CorruptFile, "lacks layers"),
}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("case", REFUSED)
async def test_what_does_not_fit_is_refused_by_name(worker, kept, case):
    tensors, metadata, kind, words = REFUSED[case]
    plain = pixels(await handled(worker))
    with pytest.raises(kind, match=words) as failure:
        await draw(worker, hypernetworks=[kept("x.safetensors", tensors, metadata)])
    assert failure.value.field == "hypernetworks"
    assert np.array_equal(pixels(await handled(worker)), plain)


@pytest.mark.parametrize("model", ["tiny-xl", "tiny-flux", "tiny-sd3"])
async def test_other_families_refuse_them_before_anything_is_loaded(worker, kept, model):
    with pytest.raises(UnknownParameter, match="hypernetworks is not taken by") as failure:
        await draw(worker, model=model, hypernetworks=[kept("x.safetensors", flat(pickled()))])
    assert failure.value.field == "hypernetworks"
    assert worker.engine.resident_models == []


async def test_a_pickle_needs_the_operators_leave(worker, kept):
    with pytest.raises(UnsafeFormat, match="pickle") as failure:
        await draw(worker, hypernetworks=[kept("x.pt", pickled())])
    assert failure.value.field == "hypernetworks"
    assert worker.engine.resident_models == []


async def test_a_pickle_that_could_run_code_never_does(trusting, settings, kept, tmp_path):
    from tests.engine.test_pickles import Gadget, zipped

    marker = tmp_path / "ran"
    reference = kept("x.pt", {})
    (settings.volume / "kept/x.pt").write_bytes(zipped(Gadget("os", "system", f"touch {marker}").stream()))
    with pytest.raises(WorkerError):
        await draw(trusting, hypernetworks=[reference])
    assert not marker.exists()
    assert trusting.engine.resident_models == []
