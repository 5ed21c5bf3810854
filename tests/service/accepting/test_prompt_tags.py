"""Adapters that a prompt names become entries of their fields, by the same rules; what is unknown is warned of."""

import pytest

from worker.catalog.architectures import ARCHITECTURES, architecture
from worker.catalog.call import Model
from worker.catalog.interface.prompt_encoding import prompt_form
from worker.core.adapter import HypernetworkSpec
from worker.core.errors import ParameterOutOfRange
from worker.core.model import Detection, Kind, LoraSpec, ModelSource, ModelSpec
from worker.core.prompt_mixing import is_mixed
from worker.core.request import GenerationRequest
from worker.service.accepting.prompt_tags import read_tags
from worker.service.accepting.rules import notes_on, reads_mixtures

KNOWN = {("lora", "detail"): "file:/volume/loras/detail.safetensors", ("hypernet", "mood"): "civitai:7"}


def read(prompt: str | None, **fields: object):
    return read_tags(GenerationRequest(prompt=prompt, **fields), lambda kind, name: KNOWN.get((kind, name)))


@pytest.mark.parametrize(
    ("tag", "weight", "ignored"),
    [
        ("<lora:detail>", 1.0, None),
        ("<lora:detail:0.8>", 0.8, None),
        ("<lora:detail:-0.5>", -0.5, None),
        ("<lora:detail:0.4:0.8>", 0.8, "0.4 for the text encoder"),
        ("<lora:detail:0.8:0.8>", 0.8, None),
        ("<lora:detail:0.8:lbw=MIDD>", 0.8, "lbw=MIDD"),
    ],
)
def test_a_tag_is_an_entry_of_loras(tag, weight, ignored):
    sent = LoraSpec(model="org/other")
    request, notes = read(f"a cat, {tag} sitting", adapters=(sent,))
    assert request.prompt == "a cat, sitting"
    assert request.adapters == (sent, LoraSpec(model=KNOWN["lora", "detail"], weight=weight))
    assert [ignored in note for note in notes] == ([True] if ignored else [])


def test_a_hypernetwork_is_one_too():
    request, notes = read("a cat <hypernet:mood:0.6>")
    assert request.adapters_of(HypernetworkSpec) == (HypernetworkSpec(model="civitai:7", weight=0.6),)
    assert (request.prompt, notes) == ("a cat", ())


def test_an_unknown_name_is_left_out_with_a_warning():
    request, (note,) = read("a cat <lora:other:0.8>")
    assert (request.prompt, request.adapters) == ("a cat", ())
    assert note.startswith("prompt: <lora:other:0.8> was left out, since this worker has no LoRA of that name; ")


def test_a_tag_in_the_negative_prompt_is_left_out_with_a_warning():
    request, (note,) = read("a cat", negative_prompt="blurry <lora:detail:1>")
    assert (request.negative_prompt, request.adapters) == ("blurry", ())
    assert note.startswith("negative_prompt: <lora:detail:1> was left out")


@pytest.mark.parametrize("weight", ["11", "-10.5", "inf", "nan"])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ParameterOutOfRange, match="between -10 and 10") as failure:
        read(f"a <lora:detail:{weight}>")
    assert failure.value.field == "prompt"


@pytest.mark.parametrize("fields", [{"prompt": None}, {"prompt": "a (cat:1.2)"}])
def test_a_prompt_without_tags_is_left_alone(fields):
    request = GenerationRequest(**fields)
    assert read_tags(request, pytest.fail) == (request, ())


def test_words_that_are_to_be_read_to_the_letter_are():
    request, notes = read("a <lora:detail:1>", params={"prompt_weighting": "none"})
    assert (request.prompt, request.adapters, notes) == ("a <lora:detail:1>", (), ())


async def test_a_job_has_the_loras_of_models_yaml_and_of_the_volume_by_name(context, tmp_path):
    folder = tmp_path / "volume" / "loras"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").write_bytes(b"")
    job = await context.accept(prompt="a cat <lora:mine:0.5> <lora:nobody:1>", loras=["file:/x"])
    loras = [adapter.spec for adapter in job.adapters if isinstance(adapter.spec, LoraSpec)]
    assert [(spec.model, spec.weight) for spec in loras] == [
        ("file:/x", 1.0),
        (f"file:{folder / 'mine.safetensors'}", 0.5),
    ]
    assert job.prompt == "a cat"
    assert any("<lora:nobody:1> was left out" in warning for warning in job.warnings)
    with pytest.raises(ParameterOutOfRange, match="loras may hold at most"):
        await context.accept(prompt="a " + "<lora:mine:0.1>" * 9)


@pytest.mark.parametrize(
    ("prompt", "mixes"),
    [("a cat AND a dog", True), ("a [cat:dog:0.5]", True), ("a {cat|dog}", False), ("a [b:c:d:0.5]", False)],
)
async def test_marks_are_read_or_warned_of(context, prompt, mixes):
    job = await context.accept(prompt=prompt)
    assert (job.mixes, any("is not read here" in warning for warning in job.warnings)) == (mixes, not mixes)
    assert job.shares_a_call is not mixes
    job = await context.accept(prompt=prompt, prompt_weighting="none")
    assert (job.mixes, any("is not read here" in warning for warning in job.warnings)) == (False, True)


async def test_and_in_a_negative_prompt_is_warned_of_and_its_other_marks_are_read(context):
    job = await context.accept(prompt="a cat", negative_prompt="red AND blue")
    assert not job.mixes
    assert any(text.startswith("negative_prompt: AND is not read here") for text in job.warnings)
    job = await context.accept(prompt="a cat", negative_prompt="[red:blue:0.5]")
    assert (job.mixes, [text for text in job.warnings if "is not read" in text]) == (True, [])
    job = await context.accept(prompt="a cat", negative_prompt="[red:blue:0.5] AND green")
    assert job.mixes
    assert [text[:22] for text in job.warnings if "is not read" in text] == ["negative_prompt: AND i"]


MARKS = ("a cat AND a dog", "a [cat:dog:0.5]", "a [cat|dog]", "a {cat|dog}", "a __colour__ cat", "embedding:moody cat")


@pytest.mark.quick_rows(15)
@pytest.mark.parametrize("family", [row.id for row in ARCHITECTURES])
def test_every_family_reads_a_mark_or_warns_of_it(family):
    source = ModelSource(scheme="hf", locator="org/model")
    spec = ModelSpec(id="m", source=source, architecture=family)
    row = architecture(family)
    for task, pipeline in row.pipelines.items():
        detection = Detection(Kind.PIPELINE, "diffusers", family, pipeline, tasks=(task,))
        call = Model(spec, detection).call(task)
        if not call.takes("prompt"):
            continue
        for mark in MARKS:
            request = GenerationRequest(prompt=mark)
            warned = any("is not read here" in note for note in notes_on(request, call))
            read = reads_mixtures(request, call) and is_mixed(mark)
            assert warned is not read, (pipeline, mark)
            assert not read or prompt_form(call) in ("clip", "clip-pair"), pipeline
