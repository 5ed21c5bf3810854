"""Weighted and long prompts on tiny pipelines: against the pipelines' own encoding, and A1111's formula by hand."""

import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch

from tests import builders
from worker.engine.compatibility import old_clip_names
from worker.engine.prompts import worded

FORMS = {"sd1": "clip", "sdxl": "clip-pair", "flux": "clip-t5", "sd3": "clip-pair-t5"}
BUILDERS = {"sd1": builders.tiny_sd1, "sdxl": builders.tiny_sdxl, "flux": builders.tiny_flux, "sd3": builders.tiny_sd3}
NAMES = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    found = {}

    def pipe(family):
        if family not in found:
            folder = BUILDERS[family](tmp_path_factory.mktemp(family))
            found[family] = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        return found[family]

    return pipe


def job(family, **params):
    return SimpleNamespace(words=FORMS[family], params=params, prompt="", negative_prompt=None)


def ours(pipe, family, how="a1111", **arguments):
    """What a call would get in place of its prompts."""
    signature = inspect.signature(pipe.__call__).parameters
    with old_clip_names(pipe):
        return worded(pipe, job(family, prompt_weighting=how), arguments, signature)


def own(pipe, **arguments):
    """The pipeline's own embeddings, by the names of its call."""
    with torch.no_grad(), old_clip_names(pipe):
        if isinstance(pipe, diffusers.StableDiffusionPipeline):
            given = pipe.encode_prompt(
                device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **arguments
            )
            return {"prompt_embeds": given[0], "negative_prompt_embeds": given[1]}
        if isinstance(pipe, diffusers.FluxPipeline):
            given = pipe.encode_prompt(**{"prompt_2": None} | arguments)
            return {"prompt_embeds": given[0], "pooled_prompt_embeds": given[1]}
        given = (
            pipe.encode_prompt(**{"prompt_2": None, "prompt_3": None} | arguments)
            if hasattr(pipe, "tokenizer_3")
            else pipe.encode_prompt(**arguments)
        )
        return dict(zip(("prompt_embeds", "negative_prompt_embeds", *NAMES[1::2]), given, strict=True))


CASES = {
    "sd1": [{}, {"negative_prompt": "blue"}, {"clip_skip": 1}],
    "sdxl": [{}, {"negative_prompt": "blue"}, {"clip_skip": 1}, {"prompt_2": "a pear"}],
    "flux": [{}, {"prompt_2": "a pear"}, {"max_sequence_length": 40}],
    "sd3": [{}, {"negative_prompt": "blue"}, {"clip_skip": 1}, {"prompt_2": "a pear"}, {"max_sequence_length": 40}],
}


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize(("family", "extra"), [(family, extra) for family, cases in CASES.items() for extra in cases])
def test_a_short_prompt_without_weights_is_encoded_as_the_pipeline_does_bit_for_bit(pipes, family, extra):
    pipe = pipes(family)
    wanted = own(pipe, prompt="a red apple", **extra)
    found = ours(pipe, family, prompt="a red apple", **extra)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("family", FORMS)
def test_auto_leaves_a_plain_prompt_to_the_pipeline_and_none_leaves_every_one(pipes, family):
    for how, prompt in (("auto", "a red apple"), ("none", "a (red:1.5) apple BREAK b"), ("none", "x" * 200)):
        assert ours(pipes(family), family, how, prompt=prompt) == {"prompt": prompt}
    assert "prompt" not in ours(pipes(family), family, "auto", prompt="a (red:1.5) apple")


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_brackets_in_prose_are_prose_to_a_t5(pipes, family):
    assert ours(pipes(family), family, "auto", prompt="a sign (red) [1]") == {"prompt": "a sign (red) [1]"}
    assert "prompt_embeds" in ours(pipes(family), family, "a1111", prompt="a sign (red) [1]")


def restored(hidden, weights):
    """A1111's emphasis, written down again: times the weight, then back to the mean."""
    weighted = hidden * torch.tensor(weights)[None, :, None]
    return weighted * (hidden.mean() / weighted.mean())


def test_a_weight_multiplies_its_tokens_and_the_mean_is_restored(pipes):
    pipe = pipes("sdxl")  # two encoders, each by itself; the demo and tiny SD1 end in a norm, which has no mean
    plain = own(pipe, prompt="a red apple", negative_prompt="")["prompt_embeds"]
    found = ours(pipe, "sdxl", prompt="a (red:1.5) [apple]")["prompt_embeds"]
    # Each letter is a token here: the mark, "a", "r e d", "a p p l e", the end mark and what fills up.
    weights = [1.0, 1.0, *[1.5] * 3, *[1 / 1.1] * 5, *[1.0] * 67]
    wanted = torch.cat([restored(part, weights) for part in plain.chunk(2, dim=-1)], dim=-1)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


def test_t5_is_weighted_by_the_same_rule_and_the_pooled_vector_is_left_alone(pipes):
    pipe = pipes("flux")
    plain = own(pipe, prompt="a red b", max_sequence_length=16)
    found = ours(pipe, "flux", prompt="a (red:1.5) b", max_sequence_length=16)
    weights = [1.0, 1.0, *[1.5] * 4, *[1.0] * 10]  # "▁ a", "▁ r e d", "▁ b", the end mark and what fills up
    assert torch.allclose(found["prompt_embeds"], restored(plain["prompt_embeds"], weights), rtol=1e-4, atol=1e-5)
    assert torch.equal(found["pooled_prompt_embeds"], plain["pooled_prompt_embeds"])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_long_prompt_is_read_in_chunks_that_are_encoded_by_themselves(pipes, family):
    pipe = pipes(family)
    first, second = "a" * 75, "b" * 20
    found = ours(pipe, family, "auto", prompt=first + second, negative_prompt="c")
    assert found["prompt_embeds"].shape[1] == found["negative_prompt_embeds"].shape[1] == 154
    # A pipeline reads an end of word only at a word's end, and the chunk ends in mid-word here: so BREAK, for the twin.
    parts = ours(pipe, family, prompt=f"{first} BREAK {second}", negative_prompt="c")["prompt_embeds"].split(77, dim=1)
    alone = [own(pipe, prompt=text, negative_prompt="c") for text in (first, second)]
    for part, wanted in zip(parts, alone, strict=True):
        assert torch.allclose(part, wanted["prompt_embeds"], atol=1e-6)
    assert torch.allclose(found["negative_prompt_embeds"][:, :77], alone[0]["negative_prompt_embeds"], atol=1e-6)
    if family == "sdxl":
        pooled = ours(pipe, family, prompt=f"{first} BREAK {second}")["pooled_prompt_embeds"]
        assert torch.allclose(pooled, alone[0]["pooled_prompt_embeds"], atol=1e-6)


def test_a_chunk_ends_after_a_comma_that_is_near(pipes):
    pipe = pipes("sd1")
    found = ours(pipe, "sd1", "auto", prompt="a" * 60 + "," + "b" * 40)["prompt_embeds"]
    wanted = ours(pipe, "sd1", prompt="a" * 60 + ", BREAK " + "b" * 40)["prompt_embeds"]
    assert torch.equal(found, wanted)
    far = ours(pipe, "sd1", "auto", prompt="a" * 40 + "," + "b" * 60)["prompt_embeds"]
    assert not torch.equal(far, ours(pipe, "sd1", prompt="a" * 40 + ", BREAK " + "b" * 60)["prompt_embeds"])


def test_sdxl_without_a_negative_prompt_is_guided_by_zeros_as_before(pipes):
    found = ours(pipes("sdxl"), "sdxl", prompt="a (red:1.2) apple")
    assert not found["negative_prompt_embeds"].any()
    assert not found["negative_pooled_prompt_embeds"].any()
    assert ours(pipes("sdxl"), "sdxl", prompt="a (b:1.2)", negative_prompt="")["negative_prompt_embeds"].any()


@pytest.mark.parametrize("family", FORMS)
def test_prompts_of_one_call_are_padded_to_as_many_chunks(pipes, family):
    prompts = ["a (red:1.2) apple", "b" * 100]
    found = ours(pipes(family), family, prompt=prompts, negative_prompt=["", "c"])
    assert all(len(value) == 2 for value in found.values() if isinstance(value, torch.Tensor))
    longer = ours(pipes(family), family, prompt=prompts[1], negative_prompt="c")
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        assert torch.allclose(found[name][1:], longer[name], atol=1e-6)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_embeddings_are_repeated_for_pipelines_that_do_not(pipes, family):
    found = ours(pipes(family), family, prompt="a (red:1.2) apple", num_images_per_prompt=3)
    assert (len(found["prompt_embeds"]), len(found["pooled_prompt_embeds"])) == (3, 3)
    assert found["num_images_per_prompt"] == 1


def test_stable_diffusion_3_without_its_t5_reads_long_prompts_too(pipes):
    pipe = pipes("sd3")
    t5, pipe.text_encoder_3 = pipe.text_encoder_3, None
    try:
        wanted = own(pipe, prompt="a red apple", prompt_3=None, max_sequence_length=20)
        found = ours(pipe, "sd3", prompt="a red apple", max_sequence_length=20)
        assert torch.equal(found["prompt_embeds"], wanted["prompt_embeds"])
        assert ours(pipe, "sd3", "auto", prompt="a" * 100, max_sequence_length=20)["prompt_embeds"].shape[1] == 174
    finally:
        pipe.text_encoder_3 = t5
