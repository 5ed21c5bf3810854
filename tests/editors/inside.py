"""Qwen-Image's editors, FireRed and Qwen-Image 2.1, from a request with an image to an image.

Run by test_editors.py, in a process where torchvision is the stand-in of this folder.
"""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image as Images

from tests.asking import perform
from tests.builders import enliven_saved
from tests.conftest import PROJECT
from tests.images import assert_differs
from tests.zoo import RECIPES
from tests.zoo.modular import MODULAR
from tests.zoo.plain import save
from tests.zoo.recipe import Image
from tests.zoo.served import answered, zoo_worker
from worker.app.build import build_worker
from worker.app.server import build_app
from worker.app.settings import Settings
from worker.core.training import TrainingOptions
from worker.training.dataset import read_dataset
from worker.training.lessons import Lessons
from worker.training.trainer import Trainer

FIRERED = "FireRedTeam/FireRed-Image-Edit-1.0"
EDITOR = "Qwen/Qwen-Image-Edit"
PIPELINES = {EDITOR: "QwenImageEditPipeline", FIRERED: "QwenImageEditPlusPipeline"}
WORDS = "make it blue"
pytestmark = pytest.mark.timeout(800)


def png(seed):
    written = io.BytesIO()
    Image(seed=seed).draw().save(written, "PNG")
    return written.getvalue()


def image(data):
    return np.asarray(Images.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server over models.yaml's own rows of the editors, with tiny random weights, as PRESET=firered starts it."""
    import yaml

    root = tmp_path_factory.mktemp("editors")
    registry = yaml.safe_load((PROJECT / "models.yaml").read_text())
    models = {}
    for id, pipeline in PIPELINES.items():
        folder = root / pipeline
        save(next(recipe for recipe in RECIPES if recipe.pipeline == pipeline), folder)
        enliven_saved(folder, attention=8.0)
        models[id] = {**registry["models"][id], "source": f"file:{pipeline}"}
        models[id].pop("lightning", None)  # a LoRA of the real size
    (root / "models.yaml").write_text(json.dumps({"tiers": registry["tiers"], "models": models}))
    settings = Settings(
        preset="firered",
        models_yaml=root / "models.yaml",
        volume_dir=root / "volume",
        allowed_model_dirs=(root,),
        default_steps=1,
        device="cpu",
        warm_up=False,
    )
    with TestClient(build_app(build_worker(settings))) as http:
        http.root = root
        yield http


def test_edit_takes_the_presets_model_and_changes_the_image(served):
    def edit(seed, prompt=WORDS):
        answer = served.post(
            "/edit", data={"prompt": prompt, "seed": "3"}, files={"image": ("in.png", png(seed), "image/png")}
        )
        assert answer.status_code == 200, answer.text
        return image(answer.content)

    first = edit(1)
    assert first.shape[0] * first.shape[1] > 512 * 512  # this family draws some 1024 x 1024
    assert_differs(edit(2), first)


@pytest.mark.parametrize("model", PIPELINES)
def test_run_draws_what_diffusers_itself_draws(served, model):
    sent = {"model": model, "prompt": WORDS, "image": base64.b64encode(png(1)).decode(), "seed": 5}
    sent |= {"width": 256, "height": 256, "num_inference_steps": 1, "true_cfg_scale": 4.0, "negative_prompt": " "}
    answer = served.post("/run", json={"input": sent})
    assert answer.status_code == 200, answer.text
    drawn = image(base64.b64decode(answer.json()["image"]))

    import diffusers

    pipeline = getattr(diffusers, PIPELINES[model]).from_pretrained(served.root / PIPELINES[model])
    pipeline.set_progress_bar_config(disable=True)
    source = Images.open(io.BytesIO(png(1))).convert("RGB")
    expected = pipeline(
        image=source,
        prompt=WORDS,
        negative_prompt=" ",
        true_cfg_scale=4.0,
        num_inference_steps=1,
        width=drawn.shape[1],
        height=drawn.shape[0],
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.abs(drawn.astype(int) - (expected * 255).round()).max() <= 1


def test_pairs_are_learnt_and_diffusers_draws_the_same_with_them(served, tmp_path):
    import diffusers

    folder = served.root / PIPELINES[EDITOR]
    for seed, name in ((0, "0.png"), (1, "0.source.png")):
        (tmp_path / name).write_bytes(png(seed))

    def loaded():
        pipeline = diffusers.QwenImageEditPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    options = TrainingOptions(rank=2, learning_rate=0.02, warmup_steps=0, resolution=64, caption=WORDS)
    trainer, examples = Trainer(loaded(), options, 64, 16), read_dataset(tmp_path, caption=WORDS).examples
    trainer.prepare(examples, examples, Lessons(tmp_path / "lessons", "edit"), lambda done, total: None)
    trainer.begin()
    first = trainer.held_out_loss()
    for _ in range(2):
        trainer.step()
    assert trainer.held_out_loss() < first
    file = trainer.learner.write(served.root / "pairs.safetensors", {})
    sent = {"model": EDITOR, "prompt": WORDS, "image": base64.b64encode(png(1)).decode(), "seed": 5}
    sent |= {"width": 256, "height": 256, "num_inference_steps": 1, "true_cfg_scale": 1.0}
    drawn = []
    for loras in ([], [str(file)]):
        answer = served.post("/run", json={"input": sent | {"loras": loras}}).json()
        drawn.append(image(base64.b64decode(answer["image"])))
    assert answer["loras"][0]["matched"] == answer["loras"][0]["total"] > 0
    assert_differs(*drawn)
    pipeline = loaded()
    pipeline.load_lora_weights(file)
    asked = {"prompt": WORDS, "true_cfg_scale": 1.0, "num_inference_steps": 1, "output_type": "np"}
    source = Images.open(io.BytesIO(png(1))).convert("RGB")
    asked |= {"width": drawn[1].shape[1], "height": drawn[1].shape[0]}
    expected = pipeline(image=source, generator=torch.Generator().manual_seed(5), **asked).images[0]
    assert np.abs(drawn[1].astype(int) - (expected * 255).round()).max() <= 1


def test_the_second_image_of_a_job_matters_too(served):
    def run(*seeds):
        images = [base64.b64encode(png(seed)).decode() for seed in seeds]
        sent = {"model": FIRERED, "prompt": WORDS, "image": images, "seed": 5, "num_inference_steps": 1}
        sent |= {"width": 256, "height": 256, "true_cfg_scale": 1.0}
        answer = served.post("/run", json={"input": sent})
        assert answer.status_code == 200, answer.text
        return image(base64.b64decode(answer.json()["image"]))

    assert_differs(run(1, 2), run(1, 3))


@pytest.mark.parametrize(
    "pipeline", ["QwenImage21Pipeline", "QwenImage21ModularPipeline", "QwenImage21TurboModularPipeline"]
)
async def test_qwen_image_21_draws_from_text_and_from_an_image(tmp_path, pipeline):
    known = {recipe.pipeline: recipe for recipe in (*MODULAR, *RECIPES)}
    whole = known["QwenImage21Pipeline"]  # with a processor for images too
    folder = save(replace(known[pipeline], parts=whole.parts), tmp_path / pipeline)
    worker = zoo_worker(tmp_path)
    asked = {"model": f"file:{folder}", "seed": 0, "output": {"format": "webp"}, **known[pipeline].fields()}
    asked = {**asked, "output_resolution": 64} | {"image": None}
    drawn = [answered(await perform(worker, asked, "text"))]
    for number, seed in enumerate((1, 2)):
        image = base64.b64encode(png(seed)).decode()
        answer = await perform(worker, {**asked, "image": image}, f"image-{number}")
        assert answer["task"] == "image-editing"
        drawn.append(answered(answer))
    assert_differs(drawn[1], drawn[0])
    assert_differs(drawn[2], drawn[1])
