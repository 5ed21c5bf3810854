"""A VAE of the caller's, through RunPod's door: against plain diffusers with that VAE, and gone afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from tests import builders, single_files
from tests.catalog.corpus import index as header_of
from tests.fakes.engine import fresh_id
from tests.images import assert_differs, encoded, gradient, pixels
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.app.settings import Settings
from worker.catalog.detector import detect_header
from worker.core.model import Kind
from worker.engine.adapters.tiny_vae import encode_with
from worker.store.store import Store


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A tiny model as a repository and as a single file, and VAEs: that fit it, and that do not."""
    root = tmp_path_factory.mktemp("vaes")
    models = root / "models"
    builders.tiny_sd1(models / "sd1")
    single_files.single_file(models / "sd1", models / "sd1.safetensors")
    builders.tiny_pix2pix(models / "other")  # a pipeline with a VAE of its own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        builders.vae().save_pretrained(models / "vae/kl")
        builders.vae(scaling_factor=0.13025).save_pretrained(models / "vae/xl")
        builders.vae(latent_channels=16).save_pretrained(models / "vae/kl16")
        AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ).save_pretrained(models / "vae/tiny")
    served: dict[str, Any] = {
        "sd1": {"source": "file:models/sd1", "tasks": ["text-to-image", "image-to-image"]},
        "file": {"source": "file:models/sd1.safetensors", "architecture": "sd1", "config": "models/sd1"},
    }
    for entry in served.values():
        entry["defaults"] = {"num_inference_steps": 3, "width": 64, "height": 64}
    (root / "models.yaml").write_text(json.dumps({"models": served}))
    return root


class Served:
    def __init__(self, root: Path, volume: Path) -> None:
        settings = Settings(
            models_yaml=root / "models.yaml", default_model="sd1", volume_dir=volume, device="cpu", warm_up=False
        )
        self.worker = build_worker(settings)
        self._door = build_door(self.worker, concurrency=1)

    async def draw(self, **fields: Any) -> dict[str, Any]:
        return await self._door.handle({"id": fresh_id(), "input": {"prompt": "a red apple", "seed": 7, **fields}})

    def pipe(self) -> Any:
        (resident,) = self.worker.engine._engine._pool._residents.values()
        return resident.pipe


@pytest.fixture
def served(shop, tmp_path) -> Served:
    return Served(shop, tmp_path / "volume")


def directly(shop: Path, vae: Any, cls: str = "StableDiffusionPipeline", **options: Any) -> np.ndarray:
    """What plain diffusers draws with that VAE."""
    pipe = getattr(diffusers, cls).from_pretrained(shop / "models/sd1", vae=vae.eval(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a red apple", "num_inference_steps": 3, "width": 64, "height": 64} | options
    return np.asarray(pipe(generator=torch.Generator("cpu").manual_seed(7), **arguments).images[0].convert("RGB"))


def latents(shop: Path, cls: str, **options: Any) -> torch.Tensor:
    """The latents that plain diffusers draws with the model's own VAE."""
    pipe = getattr(diffusers, cls).from_pretrained(shop / "models/sd1", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a red apple", "num_inference_steps": 3} | options
    return pipe(generator=torch.Generator("cpu").manual_seed(7), **arguments).images


def decoded(tiny: AutoencoderTiny, drawn: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        image = tiny.decode(drawn).sample[0]
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(int)


def read(path: Path) -> Any:
    name = json.loads((path / "config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(path)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(("name", "same"), [("vae/kl", "vae/kl"), ("vae/tiny", "vae/tiny"), ("other", "other/vae")])
@pytest.mark.parametrize("model", ["sd1", "file"])
async def test_images_are_those_of_the_pipeline_with_that_vae_and_the_next_job_has_its_own(
    served, shop, model, name, same
):
    plain = pixels(await served.draw(model=model))
    own, index = served.pipe().vae, dict(served.pipe().config)
    answer = await served.draw(model=model, vae=f"file:{shop}/models/{name}")
    assert np.array_equal(pixels(answer), directly(shop, read(shop / "models" / same)))
    assert_differs(pixels(answer), plain)
    assert [(item["kind"], item["model"]) for item in answer["adapters"]] == [("vae", f"file:{shop}/models/{name}")]
    assert served.pipe().vae is own
    assert dict(served.pipe().config) == index
    assert np.array_equal(pixels(await served.draw(model=model)), plain)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
async def test_a_vae_in_one_file_is_read_in_either_layout(served, shop, tmp_path, layout):
    vae = read(shop / "models/other/vae")
    tensors = vae.state_dict() if layout == "diffusers" else single_files.vae(shop / "models/other")
    path = single_files.save(tensors, tmp_path / "volume/mine.safetensors")
    answer = await served.draw(vae=f"file:{path}")
    assert np.array_equal(pixels(answer), directly(shop, vae))


@pytest.mark.parametrize("prefix", ["taesd_", ""])
async def test_a_tiny_one_in_its_authors_names_is_the_same(served, tmp_path, shop, prefix):
    tiny = AutoencoderTiny()
    named = {"vae_scale": torch.ones(1)}
    for name, tensor in tiny.state_dict().items():
        half, _, position, rest = name.split(".", 3)
        named[f"{prefix}{half}.{int(position) + (half == 'decoder')}.{rest}"] = tensor
    path = single_files.save(named, tmp_path / "volume/mine.safetensors")
    assert np.array_equal(pixels(await served.draw(vae=f"file:{path}")), directly(shop, tiny))


def half(name, prefix, channels=4):
    """The tensors of one half of a full-size tiny autoencoder, as its authors publish it in a file of its own."""
    shift = name == "decoder"
    layers = getattr(AutoencoderTiny(latent_channels=channels), name).layers.state_dict()
    places = ((key.partition("."), tensor) for key, tensor in layers.items())
    return {f"{prefix}{int(place[0]) + shift}.{place[2]}": tensor for place, tensor in places}


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("before", ["", "taesd_{}.", "{}."])
def test_one_half_of_a_tiny_one_is_told_by_its_names(name, before, channels):
    tensors = half(name, before.format(name), channels)
    told = detect_header(header_of({key: tuple(tensor.shape) for key, tensor in tensors.items()}))
    assert (told.kind, told.variant, told.component_class) == (Kind.VAE, f"tiny-{name}", "AutoencoderTiny")


async def test_the_encoder_of_a_tiny_one_is_refused_before_it_is_fetched(served, tmp_path, monkeypatch):
    path = single_files.save(half("encoder", ""), tmp_path / "volume/taesd_encoder.safetensors")
    monkeypatch.setattr(Store, "ensure", lambda *_: pytest.fail("it was fetched"))
    answer = await served.draw(vae=f"file:{path}")
    assert (answer["code"], answer["field"]) == ("unsupported_model", "vae")
    assert "is the encoder of a tiny autoencoder alone" in answer["error"]
    assert "madebyollin/taesd" in answer["error"]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("before", ["", "taesd_decoder.", "decoder."])
async def test_the_decoder_of_a_tiny_one_decodes_and_the_models_own_goes_on_encoding(served, shop, tmp_path, before):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tiny = AutoencoderTiny().eval()
        shift = {
            f"{before}{int(name.split('.')[0]) + 1}.{name.split('.', 1)[1]}": tensor
            for name, tensor in tiny.decoder.layers.state_dict().items()
        }
    path = single_files.save(shift, tmp_path / "volume/taesd_decoder.safetensors")
    answer = await served.draw(vae=f"file:{path}")
    assert np.array_equal(pixels(answer), directly(shop, tiny))
    image = gradient(64, 64)
    answer = await served.draw(image=encoded(image), strength=0.6, vae=f"file:{path}")
    start = {"image": Image.fromarray(image), "strength": 0.6, "output_type": "latent"}
    expected = decoded(tiny, latents(shop, "StableDiffusionImg2ImgPipeline", **start))
    assert int(np.abs(pixels(answer).astype(int) - expected).max()) <= 1
    assert served.pipe().vae.encoder is not None


def test_a_vae_that_overflows_in_half_precision_encodes_for_a_decoder_in_full(shop):
    own = read(shop / "models/vae/kl")
    own.register_to_config(force_upcast=True)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = own.encode(image).latent_dist.mode() * own.config.scaling_factor
        dtypes, encode = [], own.encode
        own.encode = lambda images: dtypes.append((own.dtype, images.dtype)) or encode(images)
        found = encode_with(own.half(), 1.0, image.half()).latent_dist.mode()
    assert (dtypes, own.dtype, found.dtype) == ([(torch.float32,) * 2], torch.float16, torch.float16)
    assert torch.allclose(found.float(), expected, atol=5e-3)


def test_a_tiny_one_for_videos_is_none_of_them():
    """TAEHV's has the same names and other widths."""
    shapes = {"decoder.1.weight": (256, 16, 3, 3), "decoder.3.conv.0.weight": (256, 512, 3, 3)}
    assert detect_header(header_of(shapes)).kind is Kind.UNKNOWN


async def test_it_is_taken_out_of_a_pipeline_that_could_not_be_run_itself(served, shop, tmp_path):
    folder = shutil.copytree(shop / "models/other", tmp_path / "volume/custom")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "OwnPipeline"]}))
    answer = await served.draw(vae=f"file:{folder}")
    assert np.array_equal(pixels(answer), directly(shop, read(shop / "models/other/vae")))


async def test_an_image_to_start_from_is_read_by_it_too(served, shop):
    image = gradient(64, 64)
    answer = await served.draw(image=encoded(image), strength=0.6, vae=f"file:{shop}/models/vae/kl")
    start = {"image": Image.fromarray(image), "strength": 0.6}
    direct = directly(shop, read(shop / "models/vae/kl"), "StableDiffusionImg2ImgPipeline", **start)
    assert int(np.abs(pixels(answer).astype(int) - direct).max()) <= 1


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("vae/kl16", "incompatible_adapter", "16 channels and this model's have 4"),
        ("vae/xl", "incompatible_adapter", "times 0.13025 and this model's are times 0.18215"),
        ("sd1/unet", "incompatible_adapter", "is a denoiser, not a VAE"),
        ("sd1.safetensors", "incompatible_adapter", "not a VAE"),
        ("none.safetensors", "model_not_found", "does not exist"),
    ],
)
@pytest.mark.parametrize("model", ["sd1", "file"])
async def test_what_does_not_fit_is_refused_and_nothing_is_loaded(served, shop, model, name, code, words):
    answer = await served.draw(model=model, vae=f"file:{shop}/models/{name}")
    assert (answer["code"], answer["field"]) == (code, "vae")
    assert words in answer["error"]
    assert served.worker.engine.resident_models == []


async def test_a_file_of_other_channels_is_refused_from_its_header(served, shop, tmp_path):
    tensors = read(shop / "models/vae/kl16").state_dict()
    path = single_files.save(tensors, tmp_path / "volume/kl16.safetensors")
    answer = await served.draw(vae=f"file:{path}")
    assert (answer["code"], answer["field"]) == ("incompatible_adapter", "vae")
    assert served.worker.engine.resident_models == []


async def test_a_job_that_fails_midway_gives_the_models_own_back(served, shop):
    plain = pixels(await served.draw())
    own = served.pipe().vae
    stopped = await served.draw(vae=f"file:{shop}/models/vae/kl", timeout_s=0.001)
    assert stopped["code"] == "job_timeout"
    assert served.pipe().vae is own
    assert np.array_equal(pixels(await served.draw()), plain)


async def test_what_reproduce_says_names_it(served, shop):
    first = await served.draw(vae=f"file:{shop}/models/vae/kl")
    assert np.array_equal(pixels(await served.draw(**first["reproduce"]["input"])), pixels(first))
