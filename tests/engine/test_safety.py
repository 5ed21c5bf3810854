"""The operator's safety checker: a verdict on every image, what is done about it, and no image without it."""

import itertools
import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from tests import tiny_tasks
from tests.asking import perform
from tests.images import pixels
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.errors import LoadFailed, SourceError, WorkerError

_ids = itertools.count()
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def classifier(folder, labels=("normal", "nsfw"), unsafe=0.9):
    """A tiny image classifier that gives its last label about `unsafe`, whatever it sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        names = dict(enumerate(labels))
        model = ViTForImageClassification(
            ViTConfig(**TINY, image_size=32, patch_size=16, id2label=names, label2id={v: k for k, v in names.items()})
        )
    model.classifier.weight.data.mul_(0.01)
    model.classifier.bias.data.copy_(torch.tensor([0.0] * (len(labels) - 1) + [float(np.log(unsafe / (1 - unsafe)))]))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def concepts(folder, flags):
    """Stable Diffusion's checker, tiny, which finds its concepts in everything or in nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vision = {**TINY, "image_size": 224, "patch_size": 112}
        model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    model.concept_embeds_weights.data.fill_(-2.0 if flags else 2.0)
    model.special_care_embeds_weights.data.fill_(2.0)
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shop(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("safety")
    models = root / "models"
    classifier(models / "likely")
    classifier(models / "unlikely", unsafe=0.1)
    classifier(models / "strange", labels=("cat", "dog"))
    concepts(models / "flags", True)
    concepts(models / "passes", False)
    tiny_tasks.cogvideox(models / "video")
    entries = {
        "sd1": {"source": f"file:{zoo}/models/sd1", "defaults": {"num_inference_steps": 2}},
        "video": {"source": "file:models/video", "defaults": {"num_inference_steps": 2}},
    }
    (root / "models.yaml").write_text(json.dumps({"models": entries}))

    def settings(**changes):
        given = {"models_yaml": root / "models.yaml", "default_model": "sd1", "allowed_model_dirs": [zoo, root]}
        if "safety_checker" in changes:
            changes["safety_checker"] = f"file:{models / changes['safety_checker']}"
        return Settings(**given, volume_dir=root / "volume", device="cpu", warm_up=False, **changes)

    return settings


async def ask(worker, **fields):
    fields = {"prompt": "a red apple", "seed": 7, **fields}
    return await perform(worker, fields, f"safety-{next(_ids)}", lambda progress: None)


async def test_off_unless_the_operator_says_so(shop):
    answer = await ask(build_worker(shop()))
    assert answer["safety"] == []


async def test_a_verdict_on_every_image_and_the_images_as_they_are(shop):
    plain = await ask(build_worker(shop()), num_images=2)
    answer = await ask(build_worker(shop(safety_checker="likely")), num_images=2)
    assert [(one["flagged"], one["label"]) for one in answer["safety"]] == [(True, "nsfw")] * 2
    assert 0.85 < answer["safety"][0]["score"] < 0.95
    assert np.array_equal(pixels(answer, 1), pixels(plain, 1))
    strict = await ask(build_worker(shop(safety_checker="likely", safety_threshold=0.99)))
    assert not strict["safety"][0]["flagged"]


async def test_black_and_blur_hide_only_what_is_flagged(shop):
    plain = pixels(await ask(build_worker(shop())))
    black = await ask(build_worker(shop(safety_checker="likely", safety_action="black")))
    assert pixels(black).shape == plain.shape
    assert not pixels(black).any()
    blurred = pixels(await ask(build_worker(shop(safety_checker="likely", safety_action="blur"))))
    assert blurred.any()
    assert np.abs(np.diff(blurred.astype(int), axis=1)).max() < np.abs(np.diff(plain.astype(int), axis=1)).max() / 3
    passed = await ask(build_worker(shop(safety_checker="unlikely", safety_action="black")))
    assert not passed["safety"][0]["flagged"]
    assert np.array_equal(pixels(passed), plain)


async def test_stable_diffusions_own_checker(shop):
    flagged = await ask(build_worker(shop(safety_checker="flags", safety_action="black")))
    assert flagged["safety"] == [{"flagged": True, "label": "nsfw", "score": 1.0}]
    assert not pixels(flagged).any()
    passed = await ask(build_worker(shop(safety_checker="passes", safety_action="black")))
    assert passed["safety"] == [{"flagged": False, "label": "nsfw", "score": 0.0}]
    assert pixels(passed).any()


async def test_a_video_has_one_verdict(shop):
    answer = await ask(
        build_worker(shop(safety_checker="likely", safety_action="black")),
        model="video",
        num_frames=9,
        width=64,
        height=64,
    )
    assert len(answer["safety"]) == 1
    assert answer["safety"][0]["flagged"]
    assert answer["num_frames"] == 9


async def test_labels_are_known_or_named(shop):
    with pytest.raises(LoadFailed, match="SAFETY_LABELS") as failure:
        await ask(build_worker(shop(safety_checker="strange")))
    assert "cat, dog" in failure.value.message
    answer = await ask(build_worker(shop(safety_checker="strange", safety_labels="Dog")))
    assert answer["safety"][0]["label"] == "dog"


@pytest.mark.parametrize("damage", ["missing", "broken", "other"])
async def test_without_the_checker_no_image_is_answered(shop, tmp_path, damage):
    settings = shop()
    folder = settings.models_yaml.parent / "models" / damage
    if damage != "missing":
        classifier(folder)
        if damage == "broken":
            (folder / "model.safetensors").write_bytes(b"\0" * 64)
        else:
            (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    worker = build_worker(shop(safety_checker=damage))
    with pytest.raises(WorkerError) as failure:
        await ask(worker)
    assert isinstance(failure.value, LoadFailed | SourceError) or failure.value.code == "model_not_found"
    assert "SAFETY_CHECKER" in failure.value.message
    assert failure.value.field == "SAFETY_CHECKER"
    assert worker.engine.resident_models == []
    assert str(tmp_path.parent) not in failure.value.message
