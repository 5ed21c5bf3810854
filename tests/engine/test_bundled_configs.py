"""A bundled config and a published file's own shapes make exactly the model that the file's tensors fill."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from tests.catalog.corpus import stored
from worker.catalog import architectures
from worker.engine import conversion, layouts

CONFIGS = Path(architectures.__file__).parent / "configs"
DENOISERS = [
    ("sd1", "sd1"),
    ("sd1", "sd1-inpaint"),
    ("sd1", "sd1-pix2pix"),
    ("sd2", "sd2"),
    ("sdxl", "sdxl"),
    ("sdxl", "sdxl-inpaint"),
    ("sdxl", "sdxl-unet"),
    ("sdxl", "sdxl-unet-diffusers"),
    ("sdxl-refiner", "sdxl-refiner"),
    ("ssd-1b", "ssd-1b-unet-diffusers"),
    ("segmind-vega", "vega-unet-diffusers"),
    ("flux1", "flux1"),
    ("flux1", "flux1-fill"),
    ("flux1", "flux1-control"),
    ("flux1", "flux1-diffusers"),
    ("flux1", "flux1-all-in-one"),
    ("flux1", "flux1-schnell"),
    ("flux1-schnell", "flux1-schnell"),
    ("sd3", "sd3"),
    ("sd3", "sd3-large"),
    ("chroma", "chroma-diffusers"),
    ("z-image", "z-image-diffusers"),
    ("qwen-image", "qwen-image"),
    ("qwen-image", "qwen-image-comfy"),
    ("flux2-klein", "flux2-klein-diffusers"),
]


def parts_of(header):
    """The parts of a stored header, its tensors without memory."""
    tensors = stored(header).tensors
    return conversion.split({name: torch.empty(shape, device="meta") for name, (_, shape) in tensors.items()})


def config(path):
    return json.loads((CONFIGS / path / "config.json").read_text())


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(("folder", "header"), DENOISERS)
def test_a_denoiser_fits(folder, header):
    part = "unet" if (CONFIGS / folder / "unet").is_dir() else "transformer"
    settings = config(f"{folder}/{part}")
    name = settings["_class_name"]
    (weights,) = parts_of(header)["denoiser"]
    fit = layouts.fit(part, getattr(diffusers, name), weights, settings)
    with torch.device("meta"):
        wanted = getattr(diffusers, name).from_config(settings | fit.changes).state_dict()
    assert {key: tensor.shape for key, tensor in fit.weights.items()} == {key: one.shape for key, one in wanted.items()}


@pytest.mark.parametrize("header", ["sd1", "sd2", "sdxl", "sdxl-refiner", "flux1-all-in-one", "sd3"])
def test_text_encoders_fit(header):
    folder = {"flux1-all-in-one": "flux1"}.get(header, header)
    parts = parts_of(header)
    listed = json.loads((CONFIGS / folder / "model_index.json").read_text())
    index = {name: entry for name, entry in listed.items() if isinstance(entry, list)}
    for kind, mark in (("clip", "CLIPText"), ("t5", "T5Encoder")):
        names = sorted(
            name for name, entry in index.items() if isinstance(entry, list) and str(entry[1]).startswith(mark)
        )
        for name, weights in zip(names, parts.get(kind, []), strict=False):
            cls = getattr(transformers, index[name][1])
            with torch.device("meta"):
                model = cls(cls.config_class(**config(f"{folder}/{name}")))
            named = conversion.clip_names(weights, model) if kind == "clip" else conversion.t5_names(weights, model)
            wanted = {key: tensor.shape for key, tensor in model.named_parameters()}
            assert {key: named[key].shape for key in wanted if key in named} == wanted


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in CONFIGS.glob("*/model_index.json")))
def test_what_a_bundle_lists_are_classes_that_exist(folder):
    for name, entry in json.loads((CONFIGS / folder / "model_index.json").read_text()).items():
        if isinstance(entry, list) and entry != [None, None]:
            library = {"diffusers": diffusers, "transformers": transformers}[entry[0]]
            assert isinstance(getattr(library, entry[1]), type), name


def test_t5_xxl_has_its_published_size():
    with torch.device("meta"):
        model = transformers.T5EncoderModel(transformers.T5Config(**config("flux1/text_encoder_2")))
    assert sum(tensor.numel() for tensor in model.parameters()) == 4_762_310_656
