"""Control LoRAs, through the RunPod door: each is the ControlNet that it was made of, on the base that it is given."""

import logging
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.builders import lora_for
from tests.controls import control_lora, difference, whole_checkpoint
from tests.engine.controlled import IMAGE, Shop
from tests.images import assert_differs, encoded, pixels
from tests.single_files import weights
from tests.zoo.plain import quiet

PIPELINES = {
    "sd1": "StableDiffusionControlNetPipeline",
    "xl": "StableDiffusionXLControlNetPipeline",
    "inpaint": "StableDiffusionControlNetInpaintPipeline",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)
    shop = Shop(tmp_path_factory.mktemp("control-loras"), PIPELINES)
    for name, pair in shop.pairs.items():
        control_lora(pair.control, pair.model, shop.root / f"{name}.safetensors")
    return shop


def file(shop, name):
    return {"model": f"file:{shop.root}/{name}.safetensors"}


def forget(shop):
    """Drop the models from the device, and with them the controls beside them."""
    for model in list(shop.worker.engine.resident_models):
        shop.worker.engine.submit(lambda engine, name=model: engine.unload(name), "unload").result()


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", ["sd1", "xl"])
async def test_it_draws_as_the_controlnet_that_it_was_made_of_and_leaves_no_trace(shop, name):
    plain, whole = await shop.usual(name), await shop.usual(name, {})
    assert_differs(whole, plain)
    answer = await shop.ask(name, file(shop, name))
    assert np.abs(pixels(answer).astype(int) - whole).max() <= 1
    assert answer["adapters"][0]["kind"] == "controlnet"
    assert np.array_equal(await shop.draw(name), plain)
    assert np.array_equal(await shop.draw(name, file(shop, name)), pixels(answer))
    assert np.array_equal(await shop.draw(name, {**file(shop, name), "scale": 0}), plain)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("form", ["difference", "whole", "wrapped", "wrapped twice"])
async def test_other_forms_of_a_file_are_the_controlnet_that_they_were_made_of(shop, form):
    pair, path = shop.pairs["sd1"], shop.root / f"{form}.safetensors"
    if form == "difference":
        difference(pair.control, pair.model, path)
    elif form == "whole":
        whole_checkpoint(pair.control, pair.model, path)
    else:
        prefix = "module." if form == "wrapped" else "module._orig_mod."
        save_file({f"{prefix}{name}": tensor for name, tensor in weights(pair.control).items()}, path)
    assert np.abs(await shop.draw("sd1", file(shop, form)) - await shop.usual("sd1", {})).max() <= 1


async def test_on_an_inpainting_model_it_sees_what_its_controlnet_would(shop):
    mask = np.zeros_like(IMAGE)
    mask[:, 32:] = 255
    fields = {"image": encoded(IMAGE), "mask_image": encoded(mask), "strength": 1.0}
    whole = await shop.draw("inpaint", {}, **fields)
    assert_differs(whole, await shop.draw("inpaint", **fields))
    assert np.abs(await shop.draw("inpaint", file(shop, "inpaint"), **fields) - whole).max() <= 1


@pytest.mark.slow
async def test_on_another_base_it_is_another_controlnet(shop):
    """What it holds is the difference: it is made anew for each base, whatever was kept for the one before."""
    pair = shop.pairs["sd1"]
    other = shop.root / "other-model"
    shutil.copytree(pair.model, other)
    (path,) = (other / "unet").glob("*.safetensors")
    base = {name: tensor.roll(1, 0).contiguous() for name, tensor in load_file(path).items()}
    save_file(base, path, metadata={"format": "pt"})
    own, control = weights(pair.model / "unet"), shop.root / "other-control"
    shutil.copytree(pair.control, control)
    (path,) = control.glob("*.safetensors")
    moved = {
        name: tensor + base[name] - own[name] if name in own and tensor.ndim > 1 else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(moved, path, metadata={"format": "pt"})
    there = {"model": f"file:{other}"}
    first = await shop.draw("sd1", file(shop, "sd1"))
    second = await shop.draw("sd1", file(shop, "sd1"), **there)
    assert np.abs(second - await shop.draw("sd1", {"model": f"file:{control}"}, **there)).max() <= 1
    assert_differs(second, await shop.draw("sd1", {}, **there))
    assert np.array_equal(await shop.draw("sd1", file(shop, "sd1")), first)


async def test_a_lora_of_the_same_job_changes_the_model_and_not_the_control(shop):
    pair = shop.pairs["sd1"]
    loras = [f"file:{lora_for(pair.model, shop.root / 'lora.safetensors')}"]
    whole = await shop.draw("sd1", {}, loras=loras)
    assert_differs(whole, await shop.usual("sd1", {}))
    forget(shop)  # so that the control is made while the LoRA is on
    assert np.abs(await shop.draw("sd1", file(shop, "sd1"), loras=loras) - whole).max() <= 1
    assert np.abs(await shop.draw("sd1", file(shop, "sd1")) - await shop.usual("sd1", {})).max() <= 1


async def test_a_model_is_loaded_with_room_for_the_controlnet_that_the_file_becomes(shop):
    forget(shop)
    await shop.draw("sd1", file(shop, "sd1"))
    residents = shop.worker.engine.submit(lambda engine: [*engine._pool._residents.values()], "test").result()
    whole = sum(tensor.numel() for tensor in weights(shop.pairs["sd1"].control).values())
    assert [resident.plan.reserve_bytes for resident in residents] == [4 * whole]  # in float32, as a CPU computes


async def test_the_names_of_diffusers_are_read_as_well(shop):
    pair = shop.pairs["sd1"]
    named = control_lora(pair.control, pair.model, shop.root / "named.safetensors", original_names=False)
    drawn = await shop.draw("sd1", {"model": f"file:{named}"})
    assert np.array_equal(drawn, await shop.draw("sd1", file(shop, "sd1")))


async def test_one_for_another_model_is_refused_and_the_next_job_is_as_before(shop):
    plain = await shop.draw("sd1")
    answer = await shop.ask("sd1", file(shop, "xl"))
    assert (answer["code"], answer["field"]) == ("incompatible_adapter", "controlnets")
    assert "a control LoRA, do not fit this model" in answer["error"]
    assert np.array_equal(await shop.draw("sd1"), plain)


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        ("input_hint_block.", "corrupt_file", "cannot be read as a ControlNetModel"),
        ("zero_convs.1.", "incompatible_adapter", "without controlnet_down_blocks.1.weight"),
        ("input_blocks.1.0.in_layers.2.up", "incompatible_adapter", "1 of"),
    ],
)
async def test_one_that_lacks_a_part_is_refused(shop, missing, code, said):
    held = load_file(shop.root / "sd1.safetensors")
    path = shop.root / "part.safetensors"
    save_file({name: tensor for name, tensor in held.items() if not name.startswith(missing)}, path)
    answer = await shop.ask("sd1", {"model": f"file:{path}"})
    assert (answer["code"], answer["field"]) == (code, "controlnets")
    assert said in answer["error"]


async def test_what_it_does_not_hold_is_its_bases(shop):
    """A file of the parts that no base has is a ControlNet that sees its image with the base's own eyes."""
    held = load_file(shop.root / "sd1.safetensors")
    path = shop.root / "few.safetensors"
    own = ("lora_controlnet", "input_hint_block.", "zero_convs.", "middle_block_out.")
    save_file({name: tensor for name, tensor in held.items() if name.startswith(own)}, path)
    whole = shop.root / "whole"
    pair = shop.pairs["sd1"]
    shutil.copytree(pair.control, whole)
    (target,) = whole.glob("*.safetensors")
    base = weights(pair.model / "unet")
    save_file({name: base.get(name, tensor) for name, tensor in load_file(target).items()}, target, {"format": "pt"})
    drawn = await shop.draw("sd1", {"model": f"file:{path}"})
    assert np.array_equal(drawn, await shop.draw("sd1", {"model": f"file:{whole}"}))
    assert_differs(drawn, await shop.draw("sd1"))
