"""Pairs: a source and what is made of it, found by name, learnt by models that edit, and drawn alike by diffusers."""

import base64
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from tests.asking import on_one_loop, perform
from tests.builders import enliven_saved
from tests.images import assert_differs, pixels
from tests.training.test_dataset import save
from tests.training.test_jobs import FEW, ask
from tests.training.test_plain_diffusers import repository
from tests.training.test_rehearsal import IMAGE, as_served, pipeline, recipe_of
from tests.zoo import plain
from tests.zoo.recipe import Image
from tests.zoo.served import ServedZoo
from worker.core.errors import InvalidRequest, UnsupportedModel
from worker.core.training import TrainingOptions
from worker.media.images import to_pil
from worker.training.cuts import cut_beside, cuts_of
from worker.training.dataset import mirrored, read_as_asked, read_dataset
from worker.training.lessons import Lessons, grouped, joined, read_call, write_call
from worker.training.mask_weights import MaskWeights
from worker.training.rehearsal import denoiser_of, habits_of, rehearse
from worker.training.sources import SOURCES
from worker.training.trainer import Trainer

KLEIN, PIX2PIX, KONTEXT = "Flux2KleinPipeline", "StableDiffusionInstructPix2PixPipeline", "FluxKontextPipeline"
MORE = (KLEIN, "StableDiffusionXLInstructPix2PixPipeline", "Flux2Pipeline", KONTEXT)
EDITORS = [PIX2PIX, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
SOURCE = PIL.Image.fromarray((np.random.RandomState(1).rand(64, 64, 3) * 255).astype("uint8"))
OTHER = PIL.Image.fromarray((np.random.RandomState(2).rand(64, 64, 3) * 255).astype("uint8"))


def pairs(folder, count=2, size=(64, 64)):
    """Images, each with a source and an instruction."""
    for index in range(count):
        save(folder / f"{index}.png", index, size)
        save(folder / f"{index}.source.jpg", 100 + index, size)
        (folder / f"{index}.txt").write_text("be blue")
    return folder


def test_a_source_is_found_by_name_beside_its_image_in_a_folder_or_in_a_line(tmp_path):
    for index, name in enumerate(("a.png", "a.source.jpg", "sub/b.png", "sources/sub/b.png", "c.png", "before/x.png")):
        save(tmp_path / name, index)
    line = {"file_name": "c.png", "text": "make it red", "source": "before/x.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    dataset = read_dataset(tmp_path, caption="be blue")
    found = {each.name: (each.source.name, each.caption) for each in dataset.examples}
    assert found == {
        "a.png": ("a.source.jpg", "be blue"),
        "c.png": ("before/x.png", "make it red"),
        "sub/b.png": ("sources/sub/b.png", "be blue"),
    }
    assert dataset.has_sources
    assert dataset.faults == ()
    shutil.make_archive(str(tmp_path.parent / "zipped"), "zip", tmp_path)
    assert read_dataset(tmp_path.parent / "zipped.zip", caption="be blue").digest == dataset.digest
    save(tmp_path / "a.source.jpg", 9)
    assert read_dataset(tmp_path, caption="be blue").digest != dataset.digest


def test_what_is_wrong_with_sources_is_told_before_anything_is_learnt(tmp_path):
    pairs(tmp_path, 3)
    save(tmp_path / "lost.source.png", 7)
    (tmp_path / "1.source.jpg").write_bytes(b"no image")
    shutil.copy(tmp_path / "2.png", tmp_path / "2.source.jpg")
    dataset = read_dataset(tmp_path)
    assert [each.name for each in dataset.examples] == ["0.png", "2.png"]
    lost, broken, same = dataset.faults
    assert lost == "lost.source.png is a source, and its image is not there."
    assert broken.startswith("1.png is left out: its source 1.source.jpg cannot be read")
    assert same == "2.png and its source are the same file; that teaches to change nothing."


def test_a_source_that_a_line_names_has_to_be_there_and_all_images_have_one_or_none(tmp_path):
    pairs(tmp_path)
    save(tmp_path / "alone.png", 5)
    with pytest.raises(InvalidRequest, match=r"2 images with a source and 1 without, alone\.png first"):
        read_dataset(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "alone.png", "source": "nowhere.png"}))
    for source in tmp_path.glob("*.source.jpg"):
        source.unlink()
    assert read_dataset(tmp_path).faults[0] == "nowhere.png is named as the source of alone.png, and it is not there."


def test_a_folder_of_sources_has_no_images_to_learn(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "sources/a.png", 1)
    save(tmp_path / "sources/b.png", 2)
    dataset = read_dataset(tmp_path, caption="be blue")
    assert [each.name for each in dataset.examples] == ["a.png"]
    assert dataset.faults == ("sources/b.png is a source, and its image is not there.",)
    assert SOURCES.among(["hats/1.png", "sources/1.png"]) == {}


def test_a_mirrored_pair_is_mirrored_whole_and_the_same_target_may_have_two_sources(tmp_path):
    pairs(tmp_path)
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    one, other = read_dataset(tmp_path).examples
    assert one.digest == other.digest
    turned = mirrored(one)
    assert turned.source.digest != one.source.digest
    seen, was = (np.asarray(to_pil(each.source.raster())) for each in (turned, one))
    assert np.array_equal(seen, was[:, ::-1])


def test_a_source_is_cut_as_its_image_or_is_read_at_a_size_of_its_own_shape():
    options, grid = TrainingOptions(crop="random", crops=2), (64, 16)
    (cut, _) = cuts_of(640, 320, "a", options, grid)
    assert cut_beside(cut, (640, 320), (1280, 640), options, grid) == cut
    other = cut_beside(cut, (640, 320), (320, 320), options, grid)
    assert (other.size, other.corner) == ((64, 64), (0, 0))


def test_a_class_is_not_drawn_from_words_alone_where_there_are_sources(tmp_path):
    with pytest.raises(InvalidRequest, match="class_prompt draws images of a class from words alone"):
        read_as_asked(pairs(tmp_path), TrainingOptions(class_prompt="a dog"))


@pytest.mark.parametrize("name", EDITORS)
def test_a_rehearsal_has_the_source_beside_the_image_and_the_denoiser_takes_the_call_again(name, tmp_path):
    pipe = pipeline(name)
    habits = habits_of(pipe, IMAGE, 0, SOURCE)
    call, other = (rehearse(pipe, habits, IMAGE, "be blue", 0, source) for source in (SOURCE, OTHER))
    assert call.beside is not None
    assert torch.equal(call.clean, other.clean)
    one, two = (each.arguments[each.sample_name] for each in (call, other))
    assert one.shape == two.shape != call.clean.shape
    assert not torch.allclose(one, two), "what the denoiser reads has the source in it"
    write_call(tmp_path / "call.safetensors", call)
    read = read_call(tmp_path / "call.safetensors", torch.device("cpu"))
    assert read.beside == call.beside
    noisy = read.at(torch.zeros_like(read.clean))
    axis, count = read.beside
    assert torch.equal(noisy.arguments[call.sample_name].narrow(axis, count, 1), one.narrow(axis, count, 1))
    with torch.no_grad():
        output = denoiser_of(pipe)[1](**noisy.arguments, return_dict=False)[0]
    assert read.own(output).shape == read.clean.shape
    (both,) = grouped([read, read])
    assert len(joined(both).clean) == 2
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    weights = MaskWeights(pipe, habits, edits=True).weights(PIL.Image.fromarray(mask))
    assert weights.shape == call.clean.shape
    assert weights.mean() == pytest.approx(0.5)


def test_a_class_that_takes_no_source_is_refused_by_name(tiny):
    with pytest.raises(UnsupportedModel, match="StableDiffusionImg2ImgPipeline takes no source"):
        habits_of(tiny("sd1"), IMAGE, 0, SOURCE)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """One worker that may load every tiny model, and what was trained on it."""
    return ServedZoo(tmp_path_factory.mktemp("shop"))


def lively(shop, name):
    """The folder of a tiny model in which a source is seen."""
    is_new = not (shop.root / name).exists()
    folder = repository(shop, name)
    if is_new and name in (KLEIN, "Flux2Pipeline", KONTEXT):
        enliven_saved(folder, attention=8.0)
    return folder


def editor(shop, name, data, **options):
    """A trainer of pairs that has begun."""
    settings = {"rank": 4, "learning_rate": 0.02, "resolution": 64, "warmup_steps": 0, "caption_dropout": 0.0}
    made = Trainer(
        as_served(plain.load(recipe_of(name), lively(shop, name))), TrainingOptions(**settings | options), 64, 16
    )
    examples = read_dataset(data).examples
    made.prepare(examples, examples, Lessons(shop.root / "lessons", name), lambda done, total: None)
    made.begin()
    return made


@pytest.mark.parametrize("name", EDITORS)
def test_pairs_are_learnt_and_serving_and_diffusers_make_the_same_of_a_source(shop, tmp_path, name):
    made = editor(shop, name, pairs(tmp_path), batch_size=2)
    first = made.held_out_loss()
    for _ in range(4 if name == KONTEXT else 15):
        made.step()
    assert made.held_out_loss() < 0.97 * first
    file = made.learner.write(shop.root / f"{name}.safetensors", {})
    recipe = recipe_of(name)
    asked = {"image": Image(seed=1), "prompt": "be blue", "guidance_scale": 2.0}
    recipe = replace(recipe, request={**recipe.request, **asked})
    drawn = {}
    for loras, image in (([], 1), ([str(file)], 1), ([str(file)], 2)):
        seen = replace(recipe, request={**recipe.request, "image": Image(seed=image)})
        fields = seen.fields() | {"model": f"file:{lively(shop, name)}", "seed": 0, "loras": loras}
        answer = on_one_loop(perform(shop.worker, fields, f"{name}-{len(loras)}-{image}"))
        drawn[len(loras), image] = pixels(answer)
    assert answer["loras"][0]["matched"] == answer["loras"][0]["total"] > 0
    assert_differs(drawn[1, 1], drawn[0, 1])
    assert_differs(drawn[1, 2], drawn[1, 1])
    pipe = plain.load(recipe, lively(shop, name))
    pipe.load_lora_weights(file)
    direct = np.squeeze(plain.draw(recipe, pipe))
    direct = direct if direct.dtype == np.uint8 else (direct * 255).round()
    assert np.abs(direct.astype(int) - drawn[1, 1]).max() <= 1


def test_another_source_is_another_lesson(shop, tmp_path):
    data, other = pairs(tmp_path / "one", 1), pairs(tmp_path / "other", 1)
    save(other / "0.source.jpg", 55, (64, 64))
    ends = []
    for folder in (data, other):
        made = editor(shop, PIX2PIX, folder, rank=2, learning_rate=1e-3)
        made.step(), made.step()
        ends.append(made.learner.weights())
    assert not all(torch.equal(ends[0][key], value) for key, value in ends[1].items())


def sent(folder):
    """The pairs as a caller sends them."""

    def text(file):
        return base64.b64encode(file.read_bytes()).decode()

    return [
        {"image": text(file), "source": text(file.with_suffix(".source.jpg")), "caption": "be blue"}
        for file in sorted(folder.glob("*.png"))
    ]


async def test_a_job_trains_an_editor_and_its_samples_are_made_of_a_source(shop, trains, settings, tmp_path):
    folder, data = lively(shop, PIX2PIX), sent(pairs(tmp_path))
    worker = trains(allow_unregistered_models=True, allowed_model_dirs=(shop.root,))
    job = FEW | {"model": f"file:{folder}", "data": data, "resolution": 64, "name": "mine", "samples": ["make it red"]}
    plan = await ask(worker, job | {"action": "train_plan"})
    assert (plan["dataset"]["images"], plan["dataset"]["sources"]) == (2, 2)
    answer = await ask(worker, job)
    assert (answer["done"], answer["steps"]) == (True, 3)
    sample = next((settings.volume / "trained/mine/samples").glob("step-000003-1.png"))
    again = {"model": f"file:{folder}", "prompt": "make it red", "seed": 0, "loras": ["mine"]}
    source = PIL.Image.open(tmp_path / "0.source.jpg").convert("RGB")
    source.save(written := io.BytesIO(), "PNG")
    drawn = await ask(worker, again | {"image": base64.b64encode(written.getvalue()).decode()})
    assert np.array_equal(np.asarray(PIL.Image.open(sample)), pixels(drawn))
    with pytest.raises(UnsupportedModel, match="give each image of data a source"):
        await ask(worker, job | {"name": "other", "data": [{"image": data[0]["image"]}]})


async def test_a_model_that_edits_nothing_is_refused_before_it_is_loaded(trains, tmp_path):
    with pytest.raises(UnsupportedModel, match="makes no image of another"):
        await ask(trains(), FEW | {"data": sent(pairs(tmp_path)), "name": "mine"})
