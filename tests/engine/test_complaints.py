"""The words of libraries that reach a caller: their own sentences, and never the job's."""

import importlib.util
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from worker.core.errors import ParameterOutOfRange
from worker.engine.complaints import complaint, long_prompts_refused, missing_package
from worker.engine.devices import device_failure

PROMPT = "a lighthouse of glass, at dusk"


def raised(call, *arguments, **options):
    with pytest.raises(Exception) as caught:
        call(*arguments, **options)
    return caught.value


def check(prompt, height=64, **options):
    pipe = SimpleNamespace(_callback_tensor_inputs=[])
    StableDiffusionPipeline.check_inputs(pipe, prompt, height, 64, None, **options)


def test_a_librarys_sentence_reaches_the_caller():
    error = raised(check, PROMPT, 65)
    words = complaint(error, [PROMPT])
    assert words == "`height` and `width` have to be divisible by 8 but are 65 and 64"
    assert words in device_failure(error, words).message
    shapes = raised(torch.nn.Linear(4, 2), torch.zeros(1, 3))
    assert "(1x3 and 4x2)" in complaint(shapes, [PROMPT])


@pytest.mark.parametrize("prompt", [PROMPT, "lighthouse", "ein Leuchtturm bei Nacht", "灯台と海"])
def test_a_sentence_that_quotes_a_prompt_is_withheld(prompt):
    error = raised(check, prompt, prompt_embeds=torch.zeros(1))
    assert prompt in str(error)
    assert complaint(error, ["blurry", prompt]) is None
    assert prompt not in device_failure(error, complaint(error, [prompt])).message


def test_one_quoted_word_of_a_prompt_is_enough():
    error = raised(check, PROMPT, 65)
    error.args = ("The word 'lighthouse' has no token here.",)
    assert complaint(error, [PROMPT]) is None
    error.args = ("The words at dusk have no token here.",)
    assert complaint(error, [PROMPT]) is None
    error.args = ("A value of this kind at that place is not read.",)
    assert complaint(error, [PROMPT]) is not None


def test_paths_links_keys_and_values_stay_here():
    error = raised(check, PROMPT, 65)
    error.args = (
        "No file in /runpod-volume/models/x, '/my models/x' or C:\\models\\x, "
        "see https://bucket.example/y?sig=1 with hf_abcdefghijk.",
    )
    assert complaint(error) == "No file in [path], '[path]' or [path], see [link] with [key]"
    error.args = ("Got tensor([[1, 2]]) in its place.",)
    assert complaint(error) is None
    error.args = ("word " * 200,)
    assert len(complaint(error)) <= 300


def test_what_no_library_wrote_is_for_the_log():
    def own():
        raise ValueError("a sentence of this test")

    assert complaint(raised(own)) is None


def test_a_name_that_a_missing_package_would_define_names_the_package(tmp_path):
    path = tmp_path / "optional_part.py"
    path.write_text(
        "AVAILABLE = False\n"
        "if AVAILABLE:\n    from absent_package.inside import resize\n    import json\n"
        "def run(): return resize(1)\n"
        "def read(): return json.loads('1')\n"
        "def slip(): return misspelt\n"
    )
    spec = importlib.util.spec_from_file_location("optional_part", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert missing_package(raised(module.run)) == "absent_package"
    assert missing_package(raised(module.read)) is None, "it is installed"
    assert missing_package(raised(module.slip)) is None


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_omnigen_names_torchvision():
    from diffusers.pipelines.omnigen.processor_omnigen import OmniGenMultiModalProcessor

    assert missing_package(raised(OmniGenMultiModalProcessor, None)) == "torchvision"


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'absent.part'", name="absent.part"),
        ImportError("AThing requires the absent library but it was not found in your environment."),
        RuntimeError("Failed to import a pipeline because of: No module named 'absent'"),
    ],
)
def test_each_way_to_say_so_is_read(error):
    assert missing_package(error) == "absent"


def test_a_prompt_of_too_many_tokens_is_the_callers_and_nothing_else_is():
    with pytest.raises(ParameterOutOfRange) as refused, long_prompts_refused():
        raise ValueError("prompt has 30 tokens, exceeds max_sequence_length=12")
    assert refused.value.field == "prompt"
    assert refused.value.message == (
        "prompt has 30 tokens and max_sequence_length is 12; shorten it, or send a larger max_sequence_length."
    )
    with pytest.raises(ValueError, match="of other things"), long_prompts_refused():
        raise ValueError("a prompt of other things")
