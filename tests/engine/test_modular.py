"""Families that diffusers has as modular pipelines only: their images, steps, guidance, and what is refused of them."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.asking import perform
from tests.images import encoded, gradient
from tests.zoo.modular.own import anima
from tests.zoo.served import answered, zoo_worker
from worker.catalog.classes.modular import has_lora_loader, modular_inputs, modular_outputs, modular_pipelines
from worker.catalog.detector import detect
from worker.core.errors import InvalidRequest, JobCancelled, UnsupportedModel
from worker.core.job import Batch
from worker.core.model import LoraSpec, ModelSpec, Outline
from worker.engine.modular import called_with_keywords
from worker.store.refs import parse_reference

FIELDS = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64, "num_inference_steps": 3}
VISIBLE = 8
# Of so few steps, a greater share would begin at the first, where diffusers too starts from noise alone.
REDRAWN = {"num_inference_steps": 10, "strength": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modular") / "anima"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = diffusers.AnimaModularPipeline()
        pipe.update_components(**anima())
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path):
    worker = zoo_worker(folder.parent)

    async def ask(emit=lambda progress: None, **fields: Any) -> np.ndarray:
        fields = {**FIELDS, "model": f"file:{folder}", "output": {"format": "png"}, **fields}
        return answered(await perform(worker, fields, "modular", emit)).astype(int)

    return ask


async def test_the_worker_generates_what_diffusers_does_and_reports_each_step(ask, folder):
    pipe = diffusers.ModularPipeline.from_pretrained(str(folder))
    pipe.load_components(dtype=torch.float32)
    arguments = {name: value for name, value in FIELDS.items() if name != "seed"}
    generator = torch.Generator("cpu").manual_seed(7)
    plain = pipe(**arguments, generator=generator, output_type="np", output="images")[0]
    seen = []
    served = await ask(lambda progress: seen.append((progress.phase, progress.step, progress.total)))
    assert np.abs((plain * 255).round() - served).max() == 0
    assert [step for step in seen if step[0] == "inference"] == [("inference", step, 3) for step in range(4)]


async def test_an_image_is_redrawn_as_diffusers_does(ask, folder):
    image = gradient(64, 64)
    pipe = diffusers.ModularPipeline.from_pretrained(str(folder))
    pipe.load_components(dtype=torch.float32)
    plain = pipe(
        prompt="a red apple",
        image=Image.fromarray(image),
        width=64,
        height=64,
        **REDRAWN,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
        output="images",
    )[0]
    assert np.abs((plain * 255).round() - await ask(image=encoded(image), **REDRAWN)).max() == 0


async def test_guidance_and_an_image_take_effect_and_leave_no_trace(ask):
    before = await ask()
    guided = await ask(guidance_scale=30.0)
    assert np.abs(guided - before).max() >= VISIBLE
    assert np.abs(await ask(guidance_scale=30.0, negative_prompt="a blue pear") - guided).max() >= VISIBLE
    assert np.abs(await ask(image=encoded(gradient(64, 64)), **REDRAWN) - before).max() >= VISIBLE
    assert np.abs(await ask(guidance_scale=30.0, shift=0.5) - guided).max() >= VISIBLE
    assert (await ask() == before).all()


async def test_a_job_stops_at_a_step_and_the_next_is_as_if_it_had_never_been(ask, capfd, monkeypatch):
    before, steps = await ask(), []
    check = Batch.check

    def stop(batch: Batch) -> None:
        check(batch)
        if steps and steps[-1] == 2:
            raise JobCancelled("stopped")

    with monkeypatch.context() as patch, pytest.raises(JobCancelled):
        patch.setattr("worker.core.job.Batch.check", stop)
        await ask(lambda progress: steps.append(progress.step), num_inference_steps=50, prompt="a secret")
    assert steps[-1] == 2
    assert (await ask() == before).all()
    assert not any(text in "".join(capfd.readouterr()) for text in ("a secret", "it/s"))


def configs_of(folder: Path, **changes: object) -> dict[str, Any]:
    files = {path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in folder.rglob("config.json")}
    index = json.loads((folder / "modular_model_index.json").read_text())
    return files | {"modular_model_index.json": index | changes}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"_blocks_class_name": "MyBlocks"}, "MyBlocks.* brings its own code"),
        ({"_blocks_class_name": "AnimaDecodeStep"}, "AnimaDecodeStep.* its own blocks"),
        ({"_class_name": "MineModularPipeline"}, "MineModularPipeline.* brings its own code"),
        ({"_class_name": ["mine", "ModularPipeline"]}, "brings its own code"),
        ({"vae": [None, None, {"subfolder": "vae"}]}, "has no vae"),
        ({"vae": ["diffusers", "AutoencoderKLQwenImage", {"subfolder": "other"}]}, "takes its vae from other"),
        ({"auto_map": {"ModularPipelineBlocks": "block.Mine"}}, "remote code"),
        ({"vae": ["mine/code", "AutoencoderKLQwenImage", {}]}, "remote code"),
        (
            {
                "vae": [
                    "diffusers",
                    "AutoencoderKLQwenImage",
                    {"pretrained_model_name_or_path": "a/b", "subfolder": "vae"},
                ]
            },
            "takes its vae from a/b/vae",
        ),
    ],
)
def test_code_and_parts_of_other_repositories_are_refused(folder, changes, why):
    with pytest.raises(UnsupportedModel, match=why):
        detect(Outline(configs=configs_of(folder, **changes)))


def test_a_part_that_lies_in_another_repository_is_refused_by_name(folder):
    configs = configs_of(folder)
    del configs["transformer/config.json"]
    with pytest.raises(UnsupportedModel, match=r"has no transformer|takes its transformer from"):
        detect(Outline(configs=configs))


def test_a_class_that_makes_only_sound_is_refused_before_anything_is_fetched(folder):
    name = "MiniMaxMusic3ModularPipeline"
    with pytest.raises(UnsupportedModel, match="makes no images or videos"):
        detect(Outline(configs=configs_of(folder, _class_name=name, _blocks_class_name=modular_pipelines()[name])))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vae": "file:nowhere.safetensors"}, "vae is not taken by"),
        ({"controlnets": [{"model": "file:nowhere", "image": encoded(gradient(64, 64))}]}, "controlnets is not taken"),
        ({"mask_image": encoded(gradient(64, 64)), "image": encoded(gradient(64, 64))}, "mask_image"),
        ({"images": [encoded(gradient(64, 64)), encoded(gradient(64, 64))]}, "images"),
        ({"strength": 0.4}, "strength"),
    ],
)
async def test_fields_that_it_does_not_take_are_refused(ask, fields, words):
    with pytest.raises(InvalidRequest, match=words):
        await ask(**fields)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"loras": (LoraSpec(model="file:x"),)}, "takes no loras"),
        ({"vae": "file:x"}, "takes no vae"),
        ({"pipeline": "ZImagePipeline"}, "not as ZImagePipeline"),
    ],
)
def test_declarations_that_it_does_not_take_are_refused(folder, declared, words):
    spec = ModelSpec(id="anima", source=parse_reference(f"file:{folder}"), **declared)
    with pytest.raises(UnsupportedModel, match=words):
        zoo_worker(folder.parent).resolver.detect(spec)


@pytest.mark.parametrize("name", sorted(modular_pipelines()))
def test_loras_are_taken_where_diffusers_has_a_loader_for_the_class(name):
    assert has_lora_loader(name) is hasattr(getattr(diffusers, name), "load_lora_weights")


@pytest.mark.parametrize("name", sorted(modular_pipelines()))
def test_the_catalog_reads_the_inputs_that_the_blocks_have(name):
    signature = called_with_keywords(getattr(diffusers, name)).__call__.__signature__
    assert [item.name for item in modular_inputs(name) or ()] == [*signature.parameters][1:]


@pytest.mark.parametrize("name", sorted(modular_pipelines()))
def test_the_catalog_reads_the_outputs_that_the_blocks_have(name):
    blocks = getattr(diffusers, modular_pipelines()[name])()
    assert set(modular_outputs(name)) == {item.name for item in blocks.outputs}
