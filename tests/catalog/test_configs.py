"""The bundled configurations are those of the published models: the same sizes, and the same tensor names."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import single_file_utils as single_file

from tests.catalog.corpus import stored
from worker.catalog import architectures
from worker.catalog.detector import detect
from worker.core.model import Kind, Outline

CONFIGS = Path(architectures.__file__).parent / "configs"
FOLDERS = ("sd1", "sd2", "sdxl")
# parameters of the published models
UNETS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
VAE = 83_653_863
TEXT_ENCODERS = {
    "sd1/text_encoder": ("CLIPTextModel", 123_060_480),
    "sd2/text_encoder": ("CLIPTextModel", 340_387_840),
    "sdxl/text_encoder": ("CLIPTextModel", 123_060_480),
    "sdxl/text_encoder_2": ("CLIPTextModelWithProjection", 694_659_840),
}


def read(path):
    return json.loads((CONFIGS / path).read_text(encoding="utf-8"))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def diffusers_model(path):
    config = read(f"{path}/config.json")
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config)


def test_every_config_of_the_table_is_bundled_and_no_other():
    named = {row.config for row in architectures.ARCHITECTURES if row.config}
    assert named == {path.parent.name for path in CONFIGS.glob("*/model_index.json")}
    notice = (CONFIGS / "NOTICE.md").read_text(encoding="utf-8")
    assert [name for name in named if f"`{name}`" not in notice] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_unet_and_a_vae_have_the_published_size(folder):
    assert parameters(diffusers_model(f"{folder}/unet")) == UNETS[folder]
    assert parameters(diffusers_model(f"{folder}/vae")) == VAE


@pytest.mark.parametrize("path", TEXT_ENCODERS)
def test_a_text_encoder_has_the_published_size(path):
    name, size = TEXT_ENCODERS[path]
    config = read(f"{path}/config.json")
    assert config["architectures"] == [name]
    with torch.device("meta"):
        model = getattr(transformers, name)(transformers.CLIPTextConfig(**config))
    assert parameters(model) == size


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_original_tensor_names_become_the_models(folder):
    header = stored(folder)
    for part, convert in (
        ("unet", single_file.convert_ldm_unet_checkpoint),
        ("vae", single_file.convert_ldm_vae_checkpoint),
    ):
        model = diffusers_model(f"{folder}/{part}")
        weights = {name: torch.empty(shape, device="meta") for name, (_, shape) in header.tensors.items()}
        converted = {name: tensor.shape for name, tensor in convert(weights, config=dict(model.config)).items()}
        assert converted == {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_detector_reads_its_own_bundle(folder):
    files = {str(path.relative_to(CONFIGS / folder)): path for path in (CONFIGS / folder).rglob("*.json")}
    found = detect(Outline(configs={name: json.loads(path.read_text()) for name, path in files.items()}))
    row = architectures.architecture(folder)
    assert (found.kind, found.architecture, found.native_size) == (Kind.PIPELINE, folder, row.native_size)
    assert found.prediction_type == ("v_prediction" if folder == "sd2" else "epsilon")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_part_of_a_bundle_is_there(folder):
    for part, entry in read(f"{folder}/model_index.json").items():
        if isinstance(entry, list) and entry != [None, None]:
            assert list((CONFIGS / folder / part).glob("*.json")), part


def test_the_tokenizer_is_clips():
    tokenizer = transformers.CLIPTokenizer.from_pretrained(CONFIGS / "tokenizers/clip", local_files_only=True)
    assert tokenizer("a red apple").input_ids == [49406, 320, 736, 3055, 49407]
    assert tokenizer("Où est l'été? 🍎 don't").input_ids[0] == 49406
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token) == (49408, 77, "<|endoftext|>")
    second = transformers.CLIPTokenizer.from_pretrained(
        CONFIGS / "tokenizers/clip", pad_token=read("sdxl/tokenizer_2/tokenizer_config.json")["pad_token"]
    )
    assert second("a", padding="max_length", max_length=5).input_ids == [49406, 320, 49407, 0, 0]


def test_the_tokenizer_is_stored_once_with_its_licence():
    assert [path.parent.name for path in CONFIGS.rglob("vocab.json")] == ["clip"]
    assert "OpenAI" in (CONFIGS / "tokenizers/clip/LICENSE").read_text()
    assert "MIT" in (CONFIGS / "NOTICE.md").read_text(encoding="utf-8")
