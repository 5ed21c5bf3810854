"""Which classes' prompts the worker can weigh, and what their calls must take for that."""

import pytest

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import Model
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.adapters import adapter_fields
from worker.catalog.interface.prompt_encoding import encoder_widths, prompt_form
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Task

SOURCE = ModelSource(scheme="hf", locator="org/model")


def spec_of(architecture, **fields):
    return ModelSpec(id="m", source=SOURCE, architecture=architecture, **fields)


def test_every_class_whose_prompts_are_weighed_takes_what_its_form_gives():
    forms = {}
    for row in ARCHITECTURES:
        for name in (*row.pipelines.values(), *row.classes):
            form = prompt_form(Model(spec_of(row.id)).call(Task.TEXT_TO_IMAGE).as_class(name))
            if form is not None:
                forms[name] = form
                signature = call_parameters(name)
                assert "prompt_embeds" in signature
                assert ("pooled_prompt_embeds" in signature) is (form != "clip")
                assert "t5" not in form or "max_sequence_length" in signature
    assert forms["StableDiffusionInpaintPipeline"] == "clip"
    assert forms["StableDiffusionXLControlNetUnionPipeline"] == "clip-pair"
    assert forms["FluxKontextPipeline"] == "clip-t5"
    assert forms["StableDiffusion3Img2ImgPipeline"] == "clip-pair-t5"
    assert len(forms) > 40


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("sd1", {"embeddings", "hypernetworks"}), ("sd2", {"embeddings", "hypernetworks"}), ("sdxl", {"embeddings"}),
        ("flux1", {"embeddings"}), ("sd3", {"embeddings"}), ("qwen-image", set()), ("z-image", set()), ("wan", set()),
        ("flux2", set()), ("chroma", set()),
    ],
)  # fmt: skip
def test_a_family_takes_the_words_that_its_encoders_can_learn(architecture, fields):
    row = next(row for row in ARCHITECTURES if row.id == architecture)
    for task in row.pipelines:
        taken = set(adapter_fields(Model(spec_of(architecture)).call(task)))
        assert taken & {"embeddings", "hypernetworks"} == fields, task


def test_a_models_own_configs_say_how_wide_its_encoders_are_before_its_family_does():
    configs = {"text_encoder/config.json": {"hidden_size": 128, "model_type": "clip_text_model"}}
    assert encoder_widths(Model(spec_of("sd1")), configs) == {"clip_l": 128}
    t5 = {"text_encoder_2/config.json": {"d_model": 64, "model_type": "t5"}}
    assert encoder_widths(Model(spec_of("flux1")), configs | t5) == {"clip_l": 128, "t5": 64}
    assert encoder_widths(Model(spec_of("sdxl")), {}) == {"clip_l": 768, "clip_g": 1280}
    assert encoder_widths(Model(spec_of(None), Detection(Kind.CHECKPOINT, "x", "sd2")), {}) == {"clip_l": 1024}
    assert encoder_widths(Model(spec_of(None)), {}) == {}
    assert encoder_widths(Model(spec_of("sd1", config="own")), {}) == {}  # whoever brings a config may bring any width


def test_a_class_that_looks_for_single_words_reads_its_own_prompt():
    call = Model(spec_of("sd1")).call(Task.TEXT_TO_IMAGE)
    assert prompt_form(call.as_class("StableDiffusionAttendAndExcitePipeline")) is None
    assert prompt_form(call.as_class("AnimateDiffSDXLPipeline")) == "clip-pair"
