"""What was published for older libraries and loads all the same; what stays refused."""

import json

import diffusers
import pytest
import torch
from diffusers import pipelines
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPVisionConfig

from tests import builders
from worker.core.device import LoadPlan
from worker.core.errors import UnsupportedModel, WorkerError
from worker.engine.compatibility import old_clip_names, pipeline_module
from worker.engine.components import Component
from worker.engine.loader import load_pipeline


@pytest.fixture
def paint_by_example(tmp_path):
    """A repository of a pipeline whose own image encoder lives in a folder that moved."""
    encoder = pipeline_module("paint_by_example").PaintByExampleImageEncoder
    vision = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, intermediate_size=37, patch_size=4, image_size=32,
        num_attention_heads=2, num_hidden_layers=1,
    )  # fmt: skip
    donor = diffusers.StableDiffusionPipeline.from_pretrained(builders.tiny_pix2pix(tmp_path / "donor"))
    pipe = diffusers.PaintByExamplePipeline(
        vae=donor.vae, image_encoder=encoder(vision, proj_size=32), unet=donor.unet, scheduler=donor.scheduler,
        safety_checker=None, feature_extractor=CLIPImageProcessor(), requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder, pipeline):
    return load_pipeline(LoadPlan(folder, pipeline, "float32", "cpu", "none", 0, 0))


@pytest.mark.parametrize("library", ["paint_by_example", "diffusers"])
def test_a_part_from_a_folder_that_moved_loads_by_either_name(paint_by_example, monkeypatch, library):
    monkeypatch.delattr(pipelines, "paint_by_example", raising=False)
    monkeypatch.delattr(diffusers, "PaintByExampleImageEncoder", raising=False)
    path = paint_by_example / "model_index.json"
    index = json.loads(path.read_text()) | {"image_encoder": [library, "PaintByExampleImageEncoder"]}
    path.write_text(json.dumps(index))
    with pytest.raises(Exception, match=r"paint_by_example|PaintByExampleImageEncoder"):
        diffusers.PaintByExamplePipeline.from_pretrained(paint_by_example, safety_checker=None)
    pipe = load(paint_by_example, "PaintByExamplePipeline")
    assert type(pipe.image_encoder).__name__ == "PaintByExampleImageEncoder"


def test_only_folders_of_diffusers_count_as_moved():
    assert pipeline_module("os") is None
    assert pipeline_module("tests") is None
    assert pipeline_module("pipeline_utils") is None or pipeline_module("pipeline_utils").__name__.startswith(
        "diffusers."
    )


@pytest.mark.parametrize("name", ["NoSuchPipeline", "AutoencoderKL", "__import__", "DDIMScheduler", "torch"])
def test_a_class_that_is_no_pipeline_of_diffusers_is_refused(tmp_path, name):
    folder = builders.tiny_sd1(tmp_path / "model")
    with pytest.raises(UnsupportedModel, match="is no pipeline of diffusers"):
        load(folder, name)


@pytest.mark.parametrize(("library", "name"), [("os", "system"), ("subprocess", "Popen"), ("diffusers", "nothing")])
def test_a_component_of_another_library_is_refused(library, name):
    with pytest.raises(UnsupportedModel, match="which neither diffusers"):
        _ = Component("unet", library, name).cls


def test_a_repository_that_brings_code_never_runs_it(tmp_path):
    folder = builders.tiny_sd1(tmp_path / "model")
    marker = tmp_path / "ran"
    for name in ("pipeline.py", "unet/evil.py", "evil.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for entry in (["evil", "Unet"], ["pipeline", "Unet"], ["unet.evil", "Unet"]):
        path.write_text(json.dumps(index | {"unet": entry}))
        with pytest.raises(WorkerError) as failure:
            load(folder, "StableDiffusionPipeline")
        assert failure.value.field == "model"
    assert not marker.exists()


def test_clip_layers_are_found_by_their_old_name_during_a_call_only(tmp_path):
    pipe = load(builders.tiny_sd1(tmp_path / "model"), "StableDiffusionPipeline")
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    names = list(pipe.text_encoder.state_dict())
    options = {"prompt": "x", "num_inference_steps": 1, "width": 64, "height": 64, "clip_skip": 1, "output_type": "pt"}
    with pytest.raises(AttributeError):
        pipe(**options)
    with old_clip_names(pipe):
        assert torch.isfinite(pipe(**options).images).all()
        assert list(pipe.text_encoder.state_dict()) == names
    assert not hasattr(pipe.text_encoder, "text_model")
