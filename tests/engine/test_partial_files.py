"""A denoiser alone, named by a caller: recognised by its header, completed from its family's repository, drawn."""

import os
import shutil

import pytest
import torch

from tests import builders, single_files
from tests.engine.test_generation import draw
from tests.fakes.civitai import FakeCivitai
from tests.fakes.hub import FakeHub
from tests.images import drawn_by_diffusers, pixels
from worker.app.build import build_worker
from worker.core.errors import AccessDenied, ModelNotFound, UnsafeFormat, UnsupportedModel
from worker.service.local import completing

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SIZE = {"num_inference_steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Stable Diffusion 1 of its real width where a header tells it apart, and small everywhere else."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    folder = builders.tiny_sd1(tmp_path_factory.mktemp("whole") / "sd1")
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.text_encoder = CLIPTextModel(builders.clip_config(hidden_size=768, intermediate_size=64))
    pipe.unet = builders.unet(cross_attention_dim=768, block_out_channels=(320, 64))
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def sites(whole, tmp_path):
    """A Hub with the file, and CivitAI with the same one. What the file was made from is added by each test."""
    path = single_files.save(single_files.denoiser(whole), tmp_path / "tune/tune.safetensors")
    with FakeHub() as hub, FakeCivitai() as civitai:
        hub.add_repo("org/tune", path.parent)
        civitai.add_model(1, "Tune", "Checkpoint")
        civitai.add_version(1, 2, "SD 1.5")
        civitai.add_file(2, 3, path.read_bytes(), path.name)
        yield hub, civitai


@pytest.fixture
def connected(settings, sites, whole, tmp_path, monkeypatch):
    """A worker whose bundled description of the family has the small tokenizer."""
    single_files.config_of(whole, tmp_path / "configs/sd1")
    monkeypatch.setattr(completing, "CONFIGS", tmp_path / "configs")
    hub, civitai = sites
    changes = {"hf_endpoint": hub.endpoint, "civitai_endpoint": civitai.origin}
    changes |= {"allow_unregistered_models": True, "allow_private_urls": True}
    return build_worker(settings.model_copy(update=changes))


@pytest.fixture
def base(whole, tmp_path):
    """The family's repository, with a denoiser that is not the file's."""
    folder = shutil.copytree(whole, tmp_path / "base")
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["org/tune", "civitai:1"])
async def test_it_draws_what_the_whole_model_draws_and_the_bases_denoiser_is_not_fetched(
    reference, sites, connected, whole, base
):
    sites[0].add_repo(BASE, base)
    answer = await draw(connected, model=reference, **SIZE)
    assert (pixels(answer) == drawn_by_diffusers(whole, 7, prompt="a red apple", guidance_scale=7.5, **SIZE)).all()
    sent = sites[0].sent
    assert "text_encoder/model.safetensors" in sent
    assert "unet/diffusion_pytorch_model.safetensors" not in sent


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(("gated", "error"), [(True, AccessDenied), (None, ModelNotFound)])
async def test_a_base_that_cannot_be_had_is_said_before_weights_are_fetched(gated, error, sites, connected, base):
    if gated:
        sites[0].add_repo(BASE, base, gated=True)
    for reference in ("org/tune", "civitai:1"):
        with pytest.raises(
            error, match=f"{reference} is a single file without its .*, which come from {BASE}: "
        ) as said:
            await draw(connected, model=reference, **SIZE)
        assert said.value.field == "model"
    assert not list(connected.settings.volume.rglob("*.safetensors"))
    assert connected.engine.resident_models == []


async def test_a_repository_that_is_declared_as_one_and_is_a_file_says_how_to_write_it(settings, sites):
    registry = settings.volume / "models.yaml"
    registry.parent.mkdir(parents=True)
    registry.write_text("models: {tune: {source: org/tune, architecture: sd1}}")
    changes = {"models_yaml": registry, "default_model": "tune", "hf_endpoint": sites[0].endpoint}
    with pytest.raises(UnsupportedModel, match=r"name that file in its source in models\.yaml"):
        await draw(build_worker(settings.model_copy(update=changes)))


@pytest.mark.slow
async def test_what_was_completed_once_is_drawn_by_a_new_worker_while_both_sites_are_down(settings, sites, base):
    registry = settings.volume / "models.yaml"
    registry.parent.mkdir(parents=True)
    registry.write_text("models: {tune: {source: org/tune, architecture: sd1, base: org/base}}")
    changes = {"models_yaml": registry, "default_model": "tune", "hf_endpoint": sites[0].endpoint}
    settings = settings.model_copy(update=changes)
    sites[0].add_repo("org/base", base)
    first = await draw(build_worker(settings), **SIZE)
    assert "unet/diffusion_pytorch_model.safetensors" not in sites[0].sent
    sites[0].down = True
    assert (pixels(await draw(build_worker(settings), **SIZE)) == pixels(first)).all()
    offline = build_worker(settings.model_copy(update={"offline": True}))
    assert (pixels(await draw(offline, **SIZE)) == pixels(first)).all()


@pytest.mark.slow
async def test_a_pickle_by_reference_is_fetched_looked_at_and_drawn_where_the_operator_allows_it(
    connected, sites, whole, base, tmp_path
):
    path = tmp_path / "old/old.ckpt"
    path.parent.mkdir()
    torch.save(
        {"state_dict": single_files.load_file(single_files.single_file(whole, tmp_path / "w.safetensors"))}, path
    )
    sites[0].add_repo("org/old", path.parent)
    sites[1].add_model(7, "Old", "Checkpoint")
    sites[1].add_version(7, 8, "SD 1.5")
    sites[1].add_file(8, 9, path.read_bytes(), path.name, format="PickleTensor")
    allowed = build_worker(connected.settings.model_copy(update={"allow_pickles": True}))
    want = drawn_by_diffusers(whole, 7, prompt="a red apple", guidance_scale=7.5, **SIZE)
    for reference in ("org/old", "civitai:7"):
        with pytest.raises(UnsafeFormat) as refused:
            await draw(connected, model=reference, **SIZE)
        assert refused.value.field == "model"
        assert not list(connected.settings.volume.rglob("*.ckpt"))
    for reference in ("org/old", "civitai:7"):
        assert (pixels(await draw(allowed, model=reference, **SIZE)) == want).all()


class Touch:
    """What pickles to a call of os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("beside", ["nothing", "a whole model"])
async def test_a_pickle_that_runs_code_leaves_nothing_even_where_pickles_are_allowed(
    connected, sites, whole, tmp_path, beside
):
    marker, path = tmp_path / "ran", tmp_path / "evil/evil.ckpt"
    path.parent.mkdir()
    weights = single_files.load_file(single_files.single_file(whole, tmp_path / "w.safetensors"))
    torch.save({"state_dict": {} if beside == "nothing" else weights, "hook": Touch(marker)}, path)
    sites[0].add_repo("org/evil", path.parent)
    allowed = build_worker(connected.settings.model_copy(update={"allow_pickles": True}))
    with pytest.raises(UnsafeFormat) as refused:
        await draw(allowed, model="org/evil", **SIZE)
    assert refused.value.field == "model"
    assert allowed.engine.resident_models == []
    assert not marker.exists()
    sizes = {file.stat().st_size for file in allowed.settings.volume.rglob("*") if file.is_file()}
    assert path.stat().st_size not in sizes
