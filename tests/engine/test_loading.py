"""Models as models.yaml describes them, through the whole worker: bases, other parts, what one leaves to the next."""

import itertools
import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers

from tests import builders, single_files
from tests.asking import perform
from tests.images import assert_differs, pixels
from tests.zoo import language
from worker.app.build import build_worker
from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile, UnsupportedModel, WorkerError
from worker.engine.loader import load_pipeline

_ids = itertools.count()


@pytest.fixture(scope="module")
def models(zoo, tmp_path_factory):
    """The zoo with a UNet alone, another VAE and an encoder of another model."""
    root = tmp_path_factory.mktemp("loading")
    folder = root / "models"
    shutil.copytree(zoo / "models/sd1", folder / "sd1")
    shutil.copytree(zoo / "models/sd1", folder / "sd1-without-vae", ignore=shutil.ignore_patterns("vae"))
    shutil.copy(zoo / "models/sd1.safetensors", folder / "sd1.safetensors")
    single_files.config_of(folder / "sd1", folder / "config")
    other = builders.tiny_sd1(folder / "other", seed=9)
    single_files.save(single_files.vae(other), folder / "vae.safetensors")
    single_files.save(single_files.denoiser(other), folder / "unet.safetensors")
    defaults = {"defaults": {"num_inference_steps": 2, "width": 64, "height": 64}, "limits": {"max_side": 256}}
    file = {"source": "file:models/sd1.safetensors", "architecture": "sd1", "config": "models/config"}
    unet = {"source": "file:models/unet.safetensors", "architecture": "sd1", "config": "models/config"}
    entries = {
        "plain": {"source": "file:models/sd1"},
        "file": file,
        "with-vae": file | {"vae": "file:models/vae.safetensors"},
        "repository-with-vae": {"source": "file:models/sd1-without-vae", "vae": "file:models/other"},
        "mixed": {"source": "file:models/sd1", "components": {"text_encoder": "file:models/other"}},
        "other": {"source": "file:models/other"},
        "unet": unet | {"base": "file:models/sd1"},
        "unet-alone": unet,
        "velocity": file | {"prediction_type": "v_prediction"},
        "repository-velocity": {"source": "file:models/sd1", "prediction_type": "v_prediction"},
    }
    (root / "models.yaml").write_text(
        json.dumps({"models": {name: defaults | entry for name, entry in entries.items()}})
    )
    return root / "models.yaml"


@pytest.fixture
def worker(settings, models):
    return build_worker(settings.model_copy(update={"models_yaml": models, "default_model": "plain"}))


async def draw(worker, model):
    job = {"prompt": "a red apple", "seed": 7, "model": model}
    return pixels(await perform(worker, job, f"job-{next(_ids)}", lambda progress: None))


async def test_a_vae_from_elsewhere_changes_its_own_model_only(worker):
    plain = await draw(worker, "plain")
    assert np.array_equal(await draw(worker, "file"), plain)
    changed = await draw(worker, "with-vae")
    assert_differs(changed, plain)
    assert np.array_equal(await draw(worker, "repository-with-vae"), changed)
    assert np.array_equal(await draw(worker, "file"), plain)


async def test_models_that_share_files_stay_apart_when_both_are_resident(settings, models):
    changes = {"models_yaml": models, "default_model": "plain", "max_resident_models": 3}
    worker = build_worker(settings.model_copy(update=changes))
    plain, changed = await draw(worker, "file"), await draw(worker, "with-vae")
    assert worker.engine.resident_models == ["file", "with-vae"]
    assert np.array_equal(await draw(worker, "file"), plain)
    assert np.array_equal(await draw(worker, "with-vae"), changed)


async def test_a_component_of_another_repository_is_used(worker):
    mixed = await draw(worker, "mixed")
    assert_differs(mixed, await draw(worker, "plain"))
    assert_differs(mixed, await draw(worker, "other"))


async def test_a_unet_alone_takes_the_rest_of_its_base(worker):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    folder = worker.settings.models_yaml.parent / "models"
    unet = UNet2DConditionModel.from_pretrained(folder / "other/unet")
    pipe = StableDiffusionPipeline.from_pretrained(folder / "sd1", unet=unet)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for tensor in part.parameters():
            tensor.data = tensor.data.clone()
    image = pipe("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(7)).images[0]
    assert np.array_equal(await draw(worker, "unet"), np.asarray(image))


async def test_a_unet_without_a_base_is_refused_naming_what_it_lacks(worker):
    with pytest.raises(UnsupportedModel, match=r"has no (vae|text_encoder) .* base in models\.yaml"):
        await draw(worker, "unet-alone")
    assert worker.engine.resident_models == []


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("model", ["velocity", "repository-velocity"])
async def test_a_declared_prediction_reaches_the_scheduler(worker, model):
    assert_differs(await draw(worker, model), await draw(worker, "plain"))


async def test_damaged_files_leave_nothing_behind(worker):
    path = worker.settings.models_yaml.parent / "models/sd1.safetensors"
    whole = path.read_bytes()
    plain = await draw(worker, "plain")
    try:
        for damaged in (whole[: len(whole) // 2], b"<!DOCTYPE html>" + whole[15:], b"\0" * 64, b""):
            path.write_bytes(damaged)
            with pytest.raises(WorkerError) as failure:
                await draw(build_worker(worker.settings), "file")
            assert isinstance(failure.value, CorruptFile | UnsupportedModel)
            assert str(path.parent) not in failure.value.message
    finally:
        path.write_bytes(whole)
    assert np.array_equal(await draw(worker, "file"), plain)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="only seen where torchvision is missing")
def test_a_package_that_only_loading_misses_is_named(zoo, tmp_path):
    folder = shutil.copytree(zoo / "models/sd1", tmp_path / "sd1")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "Qwen2VLProcessor"]}))
    shutil.rmtree(folder / "tokenizer")
    language.qwen_processor(transformers.Qwen2VLProcessor).save_pretrained(folder / "tokenizer")
    plan = LoadPlan(folder, "StableDiffusionPipeline", "float32", "cpu", "none", 0, 0)
    with pytest.raises(UnsupportedModel, match="needs the Python package torchvision, which is not installed") as error:
        load_pipeline(plan)
    assert error.value.details == {"package": "torchvision"}
