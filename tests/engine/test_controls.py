"""ControlNets and T2I-Adapters beside a model, through the RunPod door: what they change, and that nothing stays."""

import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, FluxControlNetModel, ZImageControlNetModel
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file

from tests.asking import perform
from tests.builders import enliven_control
from tests.controls import original
from tests.engine.controlled import IMAGE, Shop
from tests.fakes.hub import FakeHub
from tests.images import assert_differs, encoded, gradient, pixels
from tests.zoo.plain import quiet
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import Settings

OTHER = IMAGE[::-1].copy()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    quiet()
    logging.getLogger("worker").setLevel(logging.CRITICAL)
    return Shop(tmp_path_factory.mktemp("controls"))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", ["sd1", "union", "flux", "t2i"])
async def test_the_image_follows_the_control_and_the_next_job_does_not(shop, name):
    plain = await shop.usual(name)
    controlled = await shop.usual(name, {})
    other = await shop.draw(name, {"image": encoded(OTHER)})
    assert_differs(controlled, plain)
    assert_differs(controlled, other)
    assert np.array_equal(await shop.draw(name, {}), controlled)
    assert np.array_equal(await shop.draw(name), plain)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", ["sd1", "union", "flux", "t2i"])
async def test_scale_0_is_no_control_and_half_of_it_is_between(shop, name):
    plain = await shop.usual(name)
    answer = await shop.ask(name, {"scale": 0})
    assert np.array_equal(pixels(answer), plain)
    assert answer["warnings"] == ["controlnets[0] has a scale of 0 and was left out."]
    assert answer["adapters"] == []
    half = await shop.draw(name, {"scale": 0.5})
    assert_differs(half, plain)
    assert_differs(half, await shop.usual(name, {}))


async def test_diffusers_own_scale_0_is_no_control_either(shop):
    """Left out is what a scale of 0 means to diffusers too, where the control draws no random numbers of its own."""
    pair = shop.pairs["sd1"]
    answer = await shop.ask("sd1", {"scale": 0}, seed=0)
    theirs = pair.drawn_by_diffusers(
        {**answer["parameters"], "prompt": "a red apple", "negative_prompt": None}, controlnet_conditioning_scale=0.0
    )
    assert np.abs(theirs.astype(int) - pixels(answer)).max() <= 1


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", ["sd1", "union", "flux"])
async def test_start_and_end_bound_the_steps_that_follow(shop, name):
    whole, plain = await shop.usual(name, {}), await shop.usual(name)
    first, last = await shop.draw(name, {"end": 0.4}), await shop.draw(name, {"start": 0.3})
    for image, other in itertools.combinations((whole, plain, first, last), 2):
        assert_differs(image, other)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", ["sd1", "union", "flux", "t2i"])
async def test_two_controls_at_once(shop, name):
    one, two = {"scale": 0.7}, {"image": encoded(OTHER), "scale": 0.6}
    if name == "union":
        two["mode"] = "depth"
    both = await shop.draw(name, one, two)
    assert_differs(both, await shop.usual(name, one))
    assert_differs(both, await shop.usual(name, two))
    # What does nothing takes nothing from the other.
    assert np.array_equal(await shop.draw(name, one, two | {"scale": 0}), await shop.usual(name, one))


async def test_two_controlnets_of_different_files(shop):
    pair = shop.pairs["sd1"]
    config = json.loads((pair.control / "config.json").read_text())
    second = shop.root / "second"
    enliven_control(ControlNetModel.from_config(config).eval()).save_pretrained(second)
    both = await shop.draw("sd1", {}, {"model": f"file:{second}", "start": 0.25})
    assert_differs(both, await shop.usual("sd1", {}))
    assert_differs(both, await shop.draw("sd1", {"model": f"file:{second}", "start": 0.25}))


async def test_image_to_image_and_inpainting_keep_their_task(shop):
    start = {"image": encoded(OTHER), "strength": 0.8}
    answer = await shop.ask("sd1", {}, **start)
    assert answer["task"] == "image-to-image"
    assert_differs(pixels(answer), await shop.draw("sd1", **start))
    mask = np.zeros_like(IMAGE)
    mask[:, 32:] = 255
    inpaint = start | {"mask_image": encoded(mask), "strength": 1.0}
    answer = await shop.ask("sd1", {}, **inpaint)
    assert answer["task"] == "inpainting"
    assert np.abs(pixels(answer).astype(int) - OTHER)[:, :32].max() <= 1
    assert_differs(pixels(answer)[:, 32:], (await shop.draw("sd1", **inpaint))[:, 32:])


async def test_without_a_strength_the_control_changes_only_what_it_controls(shop):
    """diffusers' image-to-image classes of SDXL keep 0.7 of the image without and 0.2 of it with a ControlNet."""
    answer = await shop.ask("union", {}, image=encoded(OTHER), num_inference_steps=10)
    assert answer["parameters"]["strength"] == 0.3


async def test_lines_on_a_transparent_ground_are_lines_on_black(shop):
    lines = np.zeros((64, 64, 4), np.uint8)
    lines[20:28], lines[:, 40:44] = 255, 255
    clear = await shop.ask("sd1", {"image": encoded(lines)})
    assert "controlnets has transparent parts, which were read as black." in clear["warnings"]
    assert np.array_equal(pixels(clear), await shop.draw("sd1", {"image": encoded(lines[..., :3])}))
    assert_differs(pixels(clear), await shop.draw("sd1", {"image": encoded(np.full_like(lines[..., :3], 255))}))


async def test_its_image_is_the_requests_own_where_it_has_none(shop):
    start = {"image": encoded(IMAGE), "strength": 0.8}
    named = await shop.draw("sd1", {"image": encoded(IMAGE)}, **start)
    assert np.array_equal(await shop.draw("sd1", {"image": None}, **start), named)
    reference = f"file:{shop.pairs['sd1'].control}"
    assert np.array_equal(await shop.draw("sd1", **start, controlnet=reference), named)
    await shop.refused("invalid_request", "controlnets[0].image is missing", "sd1", {"image": None})


async def test_outpainting_is_followed_where_the_image_lies_in_the_larger_one(shop):
    wide = np.pad(IMAGE, ((0, 0), (0, 64), (0, 0)), mode="edge")
    start = {"image": encoded(IMAGE), "outpaint": {"right": 64}, "width": 128}
    named = await shop.draw("sd1", {"image": encoded(wide)}, **start)
    assert np.array_equal(await shop.draw("sd1", {"image": None}, **start), named)


async def test_preprocessing_is_the_image_that_it_makes(shop):
    from worker.core.image import Raster
    from worker.media.preprocessing import preprocess

    edges = preprocess(Raster("RGB", 64, 64, IMAGE.tobytes()), "invert")
    made = np.frombuffer(edges.data, np.uint8).reshape(64, 64, 3)
    assert np.array_equal(
        await shop.draw("sd1", {"preprocess": "invert"}), await shop.draw("sd1", {"image": encoded(made)})
    )
    # A union ControlNet is told by it what the image shows.
    told = await shop.draw("union", {"preprocess": "canny", "mode": "canny"})
    assert np.array_equal(await shop.draw("union", {"preprocess": "canny", "mode": None}), told)
    assert_differs(await shop.draw("union", {"preprocess": "canny", "mode": "depth"}), told)


async def test_without_a_size_the_drawn_one_has_the_proportions_of_the_image(shop):
    wide = await shop.ask("sd1", {"image": encoded(gradient(256, 64))}, width=None, height=None)
    assert (wide["width"], wide["height"]) == (128, 32)
    asked = await shop.ask("sd1", {"image": encoded(gradient(256, 64))})
    assert (asked["width"], asked["height"]) == (64, 64)


async def test_several_images_of_one_job_are_those_of_single_jobs(shop):
    several = await shop.ask("sd1", {}, num_images=2)
    for index in range(2):
        alone = await shop.draw("sd1", {}, seed=7 + index)
        assert np.abs(pixels(several, index) - alone).max() <= 1


async def test_guess_mode_is_a_parameter_of_controlled_jobs_only(shop):
    with_it = await shop.draw("sd1", {}, prompt="", guess_mode=True)
    assert_differs(with_it, await shop.draw("sd1", {}, prompt=""))
    await shop.refused("unknown_parameter", "guess_mode", "sd1", field="guess_mode", guess_mode=True)


async def test_a_single_file_in_the_authors_layout_draws_as_its_repository(shop):
    file = original(shop.pairs["sd1"].control, shop.root / "control_v11_tiny.safetensors")
    from_file = await shop.draw("sd1", {"model": f"file:{file}"})
    assert np.array_equal(from_file, await shop.usual("sd1", {}))


# As published: the first with a refiner of its own, version 2.0 refining with its layers, 2.1 with a refiner again.
@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("refiner", [None, "control_layers", "control_noise_refiner"])
async def test_a_single_file_of_z_image_draws_as_its_repository(tmp_path, refiner):
    shop = Shop(tmp_path, {"z-image": "ZImageControlNetPipeline"})
    folder, file = shop.pairs["z-image"].control, tmp_path / "union.safetensors"
    config = ZImageControlNetModel.load_config(folder)
    config |= {"control_layers_places": [0, 1], "control_refiner_layers_places": [0]}
    net = ZImageControlNetModel.from_config(config | {"add_control_noise_refiner": refiner or None})
    whole = net
    if refiner == "control_layers":  # its file holds a refiner all the same, as that was begun
        whole = ZImageControlNetModel.from_config(config | {"add_control_noise_refiner": "control_noise_refiner"})
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, tensor in whole.state_dict().items():
        unused = refiner == "control_layers" and name.startswith("control_noise_refiner.0.before_proj")
        tensors[name] = torch.randn(tensor.shape, generator=generator) * (0 if unused else 0.2)
    save_file(tensors, file)
    net.load_state_dict({name: tensors[name] for name in net.state_dict()})
    net.save_pretrained(folder)
    from_folder, from_file = [await shop.draw("z-image", {"model": f"file:{path}"}) for path in (folder, file)]
    assert np.abs(from_file - from_folder).max() <= 1  # tensors that lie elsewhere in memory round otherwise
    assert_differs(from_file, await shop.draw("z-image"))


async def test_what_reproduce_says_draws_the_same_image(shop):
    first = await shop.ask("sd1", {"scale": 0.8, "end": 0.75, "preprocess": "blur"})
    report = first["adapters"][0]
    assert (report["kind"], report["weight"], len(report["sha256"])) == ("controlnet", 0.8, 64)
    again = await shop.door.handle({"id": "control-again", "input": first["reproduce"]["input"]})
    assert np.array_equal(pixels(first), pixels(again))


async def test_a_control_of_other_sizes_is_refused_and_the_next_job_is_as_before(shop):
    plain = await shop.draw("sd1")
    config = json.loads((shop.pairs["sd1"].control / "config.json").read_text())
    wide = shop.root / "wide"
    ControlNetModel.from_config(config | {"cross_attention_dim": 48}).save_pretrained(wide)
    answer = await shop.ask("sd1", {"model": f"file:{wide}"})
    assert (answer["code"], answer["field"]) == ("incompatible_adapter", "controlnets")
    assert "cross_attention_dim is 48, and this model's is 32" in answer["error"]
    assert np.array_equal(await shop.draw("sd1"), plain)


@pytest.fixture
def fresh(shop):
    """The shop with nothing on the device."""
    for model in list(shop.worker.engine.resident_models):
        shop.worker.engine.submit(lambda engine, name=model: engine.unload(name), "unload").result()
    assert shop.worker.engine.resident_models == []
    return shop


async def test_a_size_that_only_the_model_takes_is_refused_with_the_nearest(fresh):
    """An adapter for SDXL unshuffles sixteen pixels a side, and its model works in eights."""
    said = "height must be a multiple of 16 with this control, and is 72; send 64."
    await fresh.refused("parameter_out_of_range", said, "xl-t2i", {}, field="height", height=72)


async def test_what_cannot_be_done_is_refused_before_anything_is_loaded(fresh):
    control = f"file:{fresh.pairs['sd1'].control}"
    adapter, union = f"file:{fresh.pairs['t2i'].control}", f"file:{fresh.pairs['union'].control}"
    refused = fresh.refused
    out_of_range, unknown, other = "parameter_out_of_range", "unknown_parameter", "incompatible_adapter"
    await refused(out_of_range, "start must be less than its end; 0.5 and 0.4", "sd1", {"start": 0.5, "end": 0.4})
    await refused(out_of_range, "one of canny, lineart, grayscale", "sd1", {"preprocess": "openpose"})
    await refused(unknown, "mode is for a union ControlNet", "sd1", {"mode": "canny"})
    await refused(out_of_range, "pose, depth, softedge, canny, normal, segment; none", "union", {"mode": None})
    await refused(out_of_range, "'tile' was sent", "union", {"mode": "tile"})
    await refused(unknown, "start is not taken by StableDiffusionAdapterPipeline", "t2i", {"start": 0.1})
    await refused(other, "is a ControlNetUnionModel, which does not serve", "sd1", {"model": union})
    await refused(other, "ControlNetModel and T2IAdapter cannot be used together", "sd1", {}, {"model": adapter})
    await refused(other, "does not serve image-to-image", "t2i", {}, image=encoded(IMAGE))
    await refused(other, "is a pipeline, not a ControlNet", "sd1", {"model": f"file:{fresh.pairs['sd1'].model}"})
    await refused("model_not_found", "does not exist", "sd1", {"model": f"file:{fresh.root}/none"})
    await refused("invalid_image", "neither base64", "sd1", {"image": "@@ no image"})
    await refused(
        unknown,
        "told by controlnets",
        "sd1",
        {},
        field="controlnet_conditioning_scale",
        controlnet_conditioning_scale=1,
    )
    answer = await fresh.ask("sd1", *[{}] * 5)
    assert (answer["code"], answer["field"]) == (out_of_range, "controlnets")
    both = f"file:{fresh.pairs['sd1'].both}"  # a model with a ControlNet of its own takes no other
    await refused(unknown, "controlnets is not taken by", "sd1", {"model": control}, model=both, image=encoded(IMAGE))
    assert fresh.worker.engine.resident_models == []


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("control-lora-sdxl", "was made for Stable Diffusion XL"),
        ("controlnet-sdxl-diffusers", "was made for Stable Diffusion XL"),
        ("controlnet-flux1-xlabs", "in the layout of XLabs"),
        ("lora-sd1-kohya", "is a lora, not a ControlNet"),
    ],
)
async def test_a_file_is_refused_by_its_header_alone(fresh, header, said):
    from tests.catalog.corpus import header_of, stored

    start, size = header_of(stored(header))
    path = fresh.root / f"{header}.safetensors"
    with path.open("wb") as file:  # the weights themselves are a hole in the file
        file.write(start)
        file.truncate(size)
    await fresh.refused("incompatible_adapter", said, "flux" if "xlabs" in header else "sd1", {"model": f"file:{path}"})
    path.unlink()


async def test_the_schema_lists_what_each_family_takes(shop):
    async def schema(name):
        return await perform(
            shop.worker, {"action": "schema", "model": f"file:{shop.pairs[name].model}"}, "s", lambda progress: None
        )

    union = await schema("union")
    fields = union["$defs"]["ControlNetSpec"]["properties"]
    assert "canny" in fields["preprocess"]["enum"]
    assert {"pose", "tile", "repaint"} <= set(fields["mode"]["enum"])
    assert union["properties"]["controlnets"]["anyOf"][0]["maxItems"] == 4
    validator = Draft202012Validator(union)
    assert not validator.is_valid({"prompt": "x", "guess_mode": True})
    validator.validate({"prompt": "x", "guess_mode": True, "controlnets": {"model": "org/c", "image": "https://a/b"}})
    assert "mode" not in (await schema("sd1"))["$defs"]["ControlNetSpec"]["properties"]
    flux = await schema("flux")
    assert "low-quality" in flux["$defs"]["ControlNetSpec"]["properties"]["mode"]["enum"]
    assert "guess_mode" not in flux["properties"]


def from_the_hub(shop, hub, volume, **changes):
    """A door of a worker that may fetch from `hub`; `edges` of its models.yaml is a ControlNet."""
    models = {"tiny": {"source": f"file:{shop.pairs['sd1'].model}"}, "edges": {"source": "org/canny"}}
    volume.mkdir()
    (volume / "models.yaml").write_text(json.dumps({"models": models}))
    settings = {"models_yaml": volume / "models.yaml", "default_model": "tiny", "allowed_model_dirs": (shop.root,)}
    worker = build_worker(
        Settings(**settings, volume_dir=volume, hf_endpoint=hub.endpoint, device="cpu", warm_up=False, **changes)
    )
    return build_door(worker, concurrency=1), worker


async def test_a_control_from_the_hub_is_looked_at_before_its_weights_are_fetched(shop, tmp_path):
    control = shop.pairs["sd1"].control
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    shutil.copytree(control, right)
    (right / "diffusion_pytorch_model.safetensors").rename(right / "diffusion_pytorch_model.fp16.safetensors")
    shutil.copytree(control, wrong)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 2048}))
    job = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 3}
    job["model"] = "tiny"
    with FakeHub() as hub:
        hub.add_repo("org/canny", right)
        hub.add_repo("org/xl", wrong)
        closed, worker = from_the_hub(shop, hub, tmp_path / "closed")
        spec = {"model": "org/xl", "image": encoded(IMAGE)}
        answer = await closed.handle({"id": "a", "input": {**job, "controlnets": [spec]}})
        assert (answer["code"], answer["field"]) == ("model_not_found", "controlnets")
        door, worker = from_the_hub(shop, hub, tmp_path / "open", allow_unregistered_models=True)
        answer = await door.handle({"id": "b", "input": {**job, "controlnets": [spec]}})
        assert (answer["code"], answer["field"]) == ("incompatible_adapter", "controlnets")
        assert "was made for Stable Diffusion XL" in answer["error"]
        assert list((tmp_path / "open").rglob("*.safetensors")) == []
        assert worker.engine.resident_models == []
        # What the operator names in models.yaml needs no further leave.
        named = await closed.handle({"id": "c", "input": {**job, "controlnets": [spec | {"model": "edges"}]}})
        assert np.array_equal(pixels(named), await shop.usual("sd1", {}))


async def test_a_pickle_is_refused_unless_the_operator_allows_it(shop, tmp_path):
    pickle = shop.root / "control_v11_tiny.pth"
    torch.save(load_file(original(shop.pairs["sd1"].control, tmp_path / "x.safetensors")), pickle)
    await shop.refused("unsafe_format", "is a PyTorch pickle", "sd1", {"model": f"file:{pickle}"})
    with FakeHub() as hub:
        door, _ = from_the_hub(shop, hub, tmp_path / "volume", allow_pickles=True)
        job = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 3}
        spec = {"model": f"file:{pickle}", "image": encoded(IMAGE)}
        answer = await door.handle({"id": "p", "input": {**job, "controlnets": [spec]}})
    assert np.array_equal(pixels(answer), await shop.usual("sd1", {}))


async def test_a_union_for_flux_is_told_what_its_image_shows(shop):
    config = json.loads((shop.pairs["flux"].control / "config.json").read_text())
    union = shop.root / "flux-union"
    net = FluxControlNetModel.from_config(config | {"num_mode": 7}).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, weight in enliven_control(net).named_parameters():
            if ".attn." in name or "mode_embedder" in name:
                weight.mul_(10)
    net.save_pretrained(union)
    spec = {"model": f"file:{union}"}
    canny, tile = [await shop.draw("flux", spec | {"mode": mode}) for mode in ("canny", "tile")]
    assert_differs(canny, tile)
    both = await shop.draw("flux", spec | {"mode": "canny"}, spec | {"mode": "tile", "image": encoded(OTHER)})
    assert_differs(both, canny)
    await shop.refused("parameter_out_of_range", "mode must be one of canny, tile, depth", "flux", spec)
