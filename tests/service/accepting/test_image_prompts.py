"""IP-Adapters before anything is loaded: which file and which image encoder are meant, and why one is refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import builders
from tests import image_prompts as tiny
from tests.fakes.engine import Builder, fresh_id
from tests.fakes.hub import FakeHub
from tests.images import encoded, gradient
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import Settings

IMAGE = encoded(gradient(20, 30))
SD1 = {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}
SDXL = {"image_proj.proj.weight": (8192, 1280), "ip_adapter.1.to_k_ip.weight": (640, 2048)}
PLUS = {"image_proj.latents": (1, 16, 768), "image_proj.proj_in.weight": (768, 1280)}
PLUS |= {"ip_adapter.1.to_k_ip.weight": (320, 768)}
FACE_ID = {"image_proj.proj.0.weight": (1024, 512), "image_proj.norm.weight": (768,)}
FACE_ID |= {"ip_adapter.0.to_q_lora.down.weight": (128, 320), "ip_adapter.0.to_q_lora.up.weight": (320, 128)}
FACE_ID |= {"ip_adapter.1.to_k_ip.weight": (320, 768)}
INSTANT = {"image_proj.proj.0.weight": (2304, 1152), "image_proj.norm.weight": (768,)}
INSTANT |= {"image_proj.proj.2.weight": (768, 2304), "ip_adapter.1.to_k_ip.weight": (320, 768)}
LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (1280, 4)}
LORA |= {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 1280)}
H94 = {"models/ip-adapter_sd15": SD1, "models/ip-adapter-plus_sd15": PLUS, "sdxl_models/ip-adapter_sdxl": SDXL}


def weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A small file whose names and widths are real."""
    return tiny.save({name: torch.zeros(*shape, dtype=torch.float16) for name, shape in shapes.items()}, path)


def encoder(folder: Path, *, projected: int, width: int = 32) -> None:
    """An image encoder's folder of a real one's widths; its weights are never read here."""
    tiny.clip_encoder(folder, projected=projected)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_size": 32', f'"hidden_size": {width}'))


class ServerContext:
    """A worker behind RunPod's door with an engine that only pretends, and a Hub."""

    def __init__(self, root: Path, hub: FakeHub, **settings: Any) -> None:
        self.root, self.hub = root, hub
        self.builder = Builder()
        registry = '{"models": {"sd1": {"source": "file:models/sd1", "architecture": "sd1"}, '
        registry += (
            '"sd3": {"source": "file:models/sd3"}, "pix": {"source": "org/pix", "architecture": "pixart-alpha"}}}'
        )
        (root / "models.yaml").write_text(registry)
        options = {"volume_dir": root / "volume", "hf_endpoint": hub.endpoint, "allow_unregistered_models": True}
        self.worker = build_worker(
            Settings(
                models_yaml=root / "models.yaml",
                default_model="sd1",
                allow_private_urls=True,
                warm_up=False,
                **(options | settings),
            ),
            self.builder,
        )
        self.given: list[Any] = []
        run = self.builder.engine.run

        def recording(batch: Any, emit: Any) -> Any:
            self.given.append(batch)
            return run(batch, emit)

        self.builder.engine.run = recording  # type: ignore[method-assign]

    async def ask(self, model: str, **adapter: Any) -> dict[str, Any]:
        fields = {"prompt": "x", "ip_adapters": [{"model": model, "image": IMAGE, **adapter}]}
        return await self.send(**fields)

    async def send(self, **fields: Any) -> dict[str, Any]:
        door = build_door(self.worker, concurrency=1)
        return await door.handle({"id": fresh_id(), "input": fields})

    def fetched(self) -> list[str]:
        return sorted(
            path.name for path in (self.root / "volume").rglob("*") if path.suffix in (".safetensors", ".bin")
        )

    async def refused(self, model: str, **adapter: Any) -> dict[str, Any]:
        """The answer to an adapter that is refused before anything is fetched or built for it."""
        answer = await self.ask(model, **adapter)
        assert answer["field"] == "ip_adapters", answer
        assert (self.fetched(), self.builder.built) == ([], 0)
        return answer


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("context")
    builders.tiny_sd1(root / "models/sd1")
    builders.tiny_sd3(root / "models/sd3")
    return root


@pytest.fixture
def context(models, tmp_path):
    (tmp_path / "models").symlink_to(models / "models")
    with FakeHub() as hub:
        files = tmp_path / "h94"
        for name, shapes in H94.items():
            weights(files / f"{name}.safetensors", shapes)
        encoder(files / "models/image_encoder", projected=1024, width=1280)
        encoder(files / "sdxl_models/image_encoder", projected=1280, width=1664)
        hub.add_repo("h94/IP-Adapter", files)
        yield ServerContext(tmp_path, hub)


def given(context: ServerContext) -> tuple[str, str, str]:
    """The adapter's file that the engine got, and the last folders of its encoder."""
    (item,) = context.given[-1].adapters
    encoder_root = item.files.parts["image_encoder"]
    return item.files.root.name, item.detection.architecture, encoder_root


@pytest.mark.parametrize(
    ("reference", "weight_name"),
    [
        ("h94/IP-Adapter#models/ip-adapter_sd15.safetensors", None),
        ("h94/IP-Adapter", "models/ip-adapter_sd15.safetensors"),
        ("h94/IP-Adapter", None),  # the usual one of the family
        ("h94/IP-Adapter#models", None),
        ("h94/IP-Adapter#models", "ip-adapter_sd15.safetensors"),
    ],
)
async def test_a_repository_of_many_files_gives_one_and_its_encoder_alone(context, reference, weight_name):
    answer = await context.ask(reference, weight_name=weight_name)
    assert answer.get("error") is None
    name, base, folder = given(context)
    assert (name, base) == ("ip-adapter_sd15.safetensors", "sd1")
    assert '"projection_dim": 1024' in (folder / "config.json").read_text()
    assert context.hub.count("ip-adapter-plus_sd15", "GET") == 0
    assert context.hub.count("sdxl_models/", "GET") == 0
    assert context.given[-1].jobs[0].adapters[0].images[0].width == 20


async def test_what_the_projection_reads_decides_which_encoder(context, tmp_path):
    await context.ask("h94/IP-Adapter#models/ip-adapter-plus_sd15.safetensors")
    assert '"hidden_size": 1280' in (given(context)[2] / "config.json").read_text()
    # trained on the larger one, and in a folder with the smaller
    weights(tmp_path / "more/ip-adapter_sd15_vit-G.safetensors", SD1 | {"image_proj.proj.weight": (3072, 1280)})
    encoder(tmp_path / "more/image_encoder", projected=1024)
    context.hub.add_repo("org/more", tmp_path / "more")
    answer = await context.ask("org/more#ip-adapter_sd15_vit-G.safetensors")
    assert answer.get("error") is None
    assert '"projection_dim": 1280' in (given(context)[2] / "config.json").read_text()


async def test_a_file_alone_takes_the_published_encoder(context, tmp_path):
    weights(tmp_path / "alone/mine.safetensors", SD1)
    context.hub.add_repo("org/alone", tmp_path / "alone")
    assert (await context.ask("org/alone")).get("error") is None
    assert '"projection_dim": 1024' in (given(context)[2] / "config.json").read_text()
    # and says so where that cannot be had
    context.hub.call(lambda: context.hub.repos.pop("h94/IP-Adapter"))
    weights(tmp_path / "other/mine.safetensors", SD1 | {"image_proj.norm.weight": (768,)})
    context.hub.add_repo("org/other", tmp_path / "other")
    other = ServerContext(tmp_path, context.hub, volume_dir=tmp_path / "second")
    answer = await other.ask("org/other")
    assert "org/other needs CLIP ViT-H/14, which comes from h94/IP-Adapter#models/image_encoder" in answer["error"]
    assert (answer["field"], other.builder.built) == ("ip_adapters", 0)


@pytest.mark.parametrize(
    ("shapes", "code", "words"),
    [
        (SDXL, "incompatible_adapter", "was made for Stable Diffusion XL and sd1 is Stable Diffusion 1"),
        (FACE_ID, "unsupported_model", "InsightFace"),
        (INSTANT, "unsupported_model", "InstantX"),
        (LORA, "incompatible_adapter", "is a lora, not an IP-Adapter"),
        (
            {"image_proj.proj.weight": (128, 24), "ip_adapter.1.to_k_ip.weight": (32, 32)},
            "unsupported_model",
            "24 wide",
        ),
    ],
)
async def test_what_does_not_suit_is_refused_from_its_header(context, tmp_path, shapes, code, words):
    weights(tmp_path / "it/it.safetensors", shapes)
    context.hub.add_repo("org/it", tmp_path / "it")
    answer = await context.refused("org/it")
    assert answer["code"] == code
    assert words in answer["error"]


async def test_of_a_folder_that_was_named_no_file_elsewhere_is_meant(context):
    answer = await context.refused("h94/IP-Adapter#sdxl_models")
    assert "ip-adapter_sdxl.safetensors" in answer["error"] + str(answer.get("details"))
    assert (await context.refused("h94/IP-Adapter#sdxl_models/ip-adapter_sdxl.safetensors"))["code"] == (
        "incompatible_adapter"
    )


async def test_of_several_files_none_of_which_is_usual_one_has_to_be_named(context, tmp_path):
    for name in ("one", "two"):
        weights(tmp_path / f"many/{name}.safetensors", SD1)
    encoder(tmp_path / "many/image_encoder", projected=1024)
    context.hub.add_repo("org/many", tmp_path / "many")
    answer = await context.refused("org/many")
    assert "one.safetensors, two.safetensors" in answer["error"]
    assert "weight_name" in answer["error"]
    assert answer["details"]["files"] == ["one.safetensors", "two.safetensors"]
    assert (await context.ask("org/many", weight_name="two.safetensors")).get("error") is None


async def test_a_folder_on_the_volume_serves_as_a_repository_does(context, tmp_path):
    folder = tmp_path / "volume/ip"
    for name in ("one", "two"):
        weights(folder / f"{name}.safetensors", SD1)
    encoder(folder / "image_encoder", projected=1024)
    several = await context.ask(f"file:{folder}")
    assert "one.safetensors, two.safetensors" in several["error"]
    assert context.builder.built == 0
    assert (await context.ask(f"file:{folder}", weight_name="two.safetensors")).get("error") is None
    (folder / "one.safetensors").unlink()
    assert (await context.ask(f"file:{folder}")).get("error") is None
    assert given(context)[2] == folder / "image_encoder"


async def test_adapters_that_read_one_encoder_go_together_also_where_it_lies_twice(context, tmp_path):
    weights(tmp_path / "copy/mine.safetensors", SD1)
    encoder(tmp_path / "copy/image_encoder", projected=1024, width=1280)
    context.hub.add_repo("org/copy", tmp_path / "copy")
    both = [
        {"model": "h94/IP-Adapter", "weight_name": "models/ip-adapter_sd15.safetensors", "image": IMAGE},
        {"model": "h94/IP-Adapter", "weight_name": "models/ip-adapter-plus_sd15.safetensors", "image": IMAGE},
    ]
    assert (await context.send(prompt="x", ip_adapters=both)).get("error") is None
    assert len(context.given[-1].adapters) == 2
    both[1] = {"model": "org/copy#mine.safetensors", "image": IMAGE}
    assert (await context.send(prompt="x", ip_adapters=both)).get("error") is None
    assert len({item.files.parts["image_encoder"] for item in context.given[-1].adapters}) == 1


async def test_adapters_that_want_two_encoders_are_refused_together(context, tmp_path):
    weights(tmp_path / "large/g.safetensors", SD1 | {"image_proj.proj.weight": (3072, 1280)})
    context.hub.add_repo("org/large", tmp_path / "large")
    both = [{"model": "h94/IP-Adapter", "image": IMAGE}, {"model": "org/large", "image": IMAGE}]
    answer = await context.send(prompt="x", ip_adapters=both)
    assert (answer["code"], answer["field"]) == ("incompatible_adapter", "ip_adapters")
    assert "CLIP ViT-H/14" in answer["error"]
    assert "CLIP ViT-bigG/14" in answer["error"]
    assert (context.fetched(), context.builder.built) == ([], 0)


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        ({}, "invalid_request", "ip_adapters[0].image is required"),
        ({"image": "bm90IGEgcGljdHVyZQ=="}, "invalid_image", "ip_adapters[0].image"),
        ({"image": IMAGE, "scale": 11}, "parameter_out_of_range", "scale"),
        ({"images": [IMAGE] * 9}, "parameter_out_of_range", "images"),
        ({"image": IMAGE, "strength": 1}, "unknown_parameter", "strength"),
    ],
)
async def test_what_was_sent_is_checked_before_the_adapter_is_looked_at(context, sent, code, words):
    answer = await context.send(prompt="x", ip_adapters=[{"model": "h94/IP-Adapter", **sent}])
    assert (answer["code"], answer["field"]) == (code, "ip_adapters")
    assert words in answer["error"]
    assert (context.hub.count("h94"), context.fetched(), context.builder.built) == (0, [], 0)


async def test_all_images_of_a_request_share_one_budget(context):
    adapters = [{"model": "h94/IP-Adapter", "images": [IMAGE] * 8}] * 2
    answer = await context.send(prompt="x", image=IMAGE, ip_adapters=adapters)
    assert (answer["code"], answer["field"]) == ("parameter_out_of_range", "ip_adapters")
    assert "at most 16 images" in answer["error"]


async def test_a_model_takes_the_field_or_names_it(context):
    answer = await context.send(prompt="x", model="pix", ip_adapters=[{"model": "h94/IP-Adapter", "image": IMAGE}])
    assert (answer["code"], answer["field"]) == ("unknown_parameter", "ip_adapters")
    answer = await context.send(
        prompt="x", model="sd3", ip_adapters=[{"model": "h94/IP-Adapter", "images": [IMAGE, IMAGE]}]
    )
    assert "one adapter with one image" in answer["error"]
    offered = {}
    for model in ("sd1", "sd3", "pix"):
        schema = await context.send(action="schema", model=model)
        offered[model] = "ip_adapters" in schema["properties"]
    assert offered == {"sd1": True, "sd3": True, "pix": False}
    assert (context.hub.count("h94"), context.builder.built) == (0, 0)


async def test_callers_need_leave_to_name_an_adapter_but_not_for_its_encoder(context, tmp_path):
    closed = ServerContext(tmp_path, context.hub, allow_unregistered_models=False)
    assert (await closed.refused("h94/IP-Adapter"))["code"] == "model_not_found"
    mine = weights(tmp_path / "volume/mine.safetensors", SD1)
    assert (await closed.ask(f"file:{mine}")).get("error") is None


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("never"),))


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_hostile_pickle_is_refused_and_removed(context, tmp_path, allowed):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "ip_adapter.bin").write_bytes(pickle.dumps({"image_proj": Hostile(), "pad": b"x" * 100}))
    context.hub.add_repo("org/bad", folder)
    open_context = ServerContext(tmp_path, context.hub, allow_pickles=allowed)
    answer = await open_context.refused("org/bad")
    assert answer["code"] == "unsafe_format"
    assert not Path("never").exists()


@pytest.mark.slow
async def test_an_allowed_pickle_of_tensors_is_converted(context, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    tensors = {"image_proj": {"proj.weight": torch.zeros(3072, 1024)}}
    tensors |= {"ip_adapter": {"1.to_k_ip.weight": torch.zeros(320, 768)}}
    torch.save(tensors, folder / "ip-adapter_sd15.bin")
    context.hub.add_repo("org/pickled", folder)
    open_context = ServerContext(tmp_path, context.hub, allow_pickles=True)
    answer = await open_context.ask("org/pickled")
    assert answer.get("error") is None
    name, base, _ = given(open_context)
    assert (base, name.endswith(".safetensors")) == ("sd1", True)
    torch.save(
        {"image_proj": tensors["image_proj"], "ip_adapter": {"1.to_k_ip.weight": torch.zeros(640, 2048)}},
        folder / "xl.bin",
    )
    (folder / "ip-adapter_sd15.bin").unlink()
    context.hub.add_repo("org/pickled-xl", folder)
    answer = await open_context.ask("org/pickled-xl")
    assert (answer["code"], answer["field"]) == ("incompatible_adapter", "ip_adapters")
