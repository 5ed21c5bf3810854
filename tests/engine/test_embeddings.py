"""Textual inversions of every layout, through the RunPod door and by hand."""

import itertools

import numpy as np
import pytest
import torch

from tests.companions import vectors
from tests.engine.test_generation import draw
from tests.engine.test_isolation import failing_once, on_engine
from tests.images import assert_all_differ, assert_differs, pixels
from worker.app.build import build_worker
from worker.app.queue import build_door
from worker.core.errors import IncompatibleAdapter, UnknownParameter, UnsafeFormat, WorkerError

_ids = itertools.count()


async def handled(worker, **fields):
    """What RunPod's platform gets back."""
    door = build_door(worker, concurrency=1)
    return await door.handle({"id": f"words-{next(_ids)}", "input": {"seed": 7, **fields}})


def tokens(answer):
    return [item["tokens"] for item in answer["adapters"]]


LAYOUTS = {
    "a1111.safetensors": lambda v: ({"emb_params": v}, None, "a1111"),
    "kohya.safetensors": lambda v: ({"emb_params": v}, {"name": "Jinx Style"}, "Jinx Style"),
    "diffusers.safetensors": lambda v: ({"<jinx>": v}, None, "<jinx>"),
    "a1111.pt": lambda v: (
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(v)}, "name": "jinx", "step": 9},
        None,
        "jinx",
    ),
}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_every_layout_draws_the_same_by_its_own_word(settings, kept, layout):
    worker = build_worker(settings.model_copy(update={"allow_pickles": True}))
    tensors, metadata, word = LAYOUTS[layout](vectors(2))
    answer = await handled(worker, prompt=f"a {word} cat", embeddings=[kept(layout, tensors, metadata)])
    assert tokens(answer) == [[word]]
    assert answer["warnings"] == []
    by_token = {"model": kept("reference.safetensors", {"emb_params": vectors(2)}), "token": "zzz"}
    wanted = await handled(worker, prompt="a zzz cat", embeddings=[by_token])
    assert np.array_equal(pixels(answer), pixels(wanted))
    assert_differs(pixels(answer), pixels(await handled(worker, prompt=f"a {word} cat")))


FAMILIES = {
    "tiny": {"emb_params": vectors(2)},
    "tiny-xl": {"clip_l": vectors(2), "clip_g": vectors(2, seed=5)},
    "tiny-flux": {"clip_l": vectors(2), "t5": vectors(2, seed=5)},
    "tiny-sd3": {"clip_l": vectors(2), "clip_g": vectors(2, seed=5), "t5xxl": vectors(2, 64, seed=6)},
}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("model", FAMILIES)
async def test_each_familys_encoders_learn_their_own_vectors(worker, kept, model):
    job = {"model": model, "prompt": "a Jinx cat"}
    before = await handled(worker, **job)
    whole = await handled(worker, **job, embeddings=[kept("jinx.safetensors", FAMILIES[model])])
    assert tokens(whole) == [["jinx"]]
    assert len(whole["adapters"][0]["sha256"]) == 64
    drawn = {pixels(before).tobytes(), pixels(whole).tobytes()}
    for part in FAMILIES[model] if len(FAMILIES[model]) > 1 else ():
        alone = {"model": kept(f"{part}.safetensors", {part: FAMILIES[model][part]}), "token": "Jinx"}
        drawn.add(pixels(await handled(worker, **job, embeddings=[alone])).tobytes())
    assert len(drawn) == (2 if model == "tiny" else 2 + len(FAMILIES[model]))  # every part changes something, alone
    assert np.array_equal(pixels(await handled(worker, **job)), pixels(before))


TWO = {"clip_l": vectors(2), "clip_g": vectors(2, seed=5)}


async def test_one_word_in_two_files_or_a_word_for_each_row_is_read_as_one_file_of_both(worker, kept):
    job = {"model": "tiny-xl", "prompt": "a <s0><s1> cat"}
    whole = {"model": kept("whole.safetensors", TWO), "token": "<s0><s1>"}
    wanted = pixels(await handled(worker, **job, embeddings=[whole]))
    assert_differs(wanted, pixels(await handled(worker, **job)))
    names = {"learned_embeds.safetensors": TWO["clip_l"], "learned_embeds_2.safetensors": TWO["clip_g"]}
    files = [{"model": kept(name, {"midjourney-style": rows}), "token": "<s0><s1>"} for name, rows in names.items()]
    assert np.array_equal(pixels(await handled(worker, **job, embeddings=files)), wanted)
    pivotal = {"text_encoders_0": TWO["clip_l"], "text_encoders_1": TWO["clip_g"]}
    answer = await handled(worker, **job, embeddings=[kept("pivotal.safetensors", pivotal)])
    assert (tokens(answer), answer["warnings"]) == ([["<s0>", "<s1>"]], [])
    assert np.array_equal(pixels(answer), wanted)


async def test_several_words_in_one_file_are_each_a_word(worker, kept):
    several = kept("several.safetensors", {"<a>": vectors(1), "<b>": vectors(2, seed=5)})
    alone = [kept("a.safetensors", {"<a>": vectors(1)}), kept("b.safetensors", {"<b>": vectors(2, seed=5)})]
    answer = await handled(worker, prompt="a <b> and <a>", embeddings=[several])
    assert (tokens(answer), answer["warnings"]) == ([["<a>", "<b>"]], [])
    assert np.array_equal(pixels(answer), pixels(await handled(worker, prompt="a <b> and <a>", embeddings=alone)))
    with pytest.raises(IncompatibleAdapter, match="brings the words <a>, <b>; leave token out"):
        await draw(worker, embeddings=[{"model": several, "token": "x"}])


async def test_a_word_is_read_whole_in_any_case_and_in_every_prompt(worker, kept):
    word = {"model": kept("x.safetensors", {"emb_params": vectors(1)}), "token": "jinx"}
    small, large = [await handled(worker, prompt=f"a {text}", embeddings=[word]) for text in ("jinx", "JINX")]
    assert np.array_equal(pixels(small), pixels(large))
    longer = await handled(worker, prompt="a jinxed", embeddings=[word])
    assert np.array_equal(pixels(longer), pixels(await handled(worker, prompt="a jinxed")))
    assert longer["warnings"] == [f"{word['model']} was loaded, but no prompt names jinx."]
    negative = await handled(worker, prompt="a cat", negative_prompt="jinx", embeddings=[word])
    assert negative["warnings"] == []
    assert_differs(pixels(negative), pixels(await handled(worker, prompt="a cat", negative_prompt="jinx")))


async def test_a_word_can_be_weighted(worker, kept):
    job = {"model": "tiny-xl", "embeddings": [kept("jinx.safetensors", FAMILIES["tiny-xl"])]}
    drawn = [
        pixels(await handled(worker, prompt=f"a {text} cat", **job)) for text in ("jinx", "(jinx:1.5)", "(jinx:0)")
    ]
    assert_all_differ(*drawn)


async def test_of_two_words_the_longer_is_read_where_both_could_be(worker, kept):
    one = {"model": kept("one.safetensors", {"emb_params": vectors(3)}), "token": "one"}
    two = {"model": kept("two.safetensors", {"emb_params": vectors(2, seed=8)}), "token": "one two"}
    both = await handled(worker, prompt="a one two, one", embeddings=[one, two])
    assert tokens(both) == [["one"], ["one two"]]
    swapped = await handled(worker, prompt="a one two, one", embeddings=[two, one])
    assert np.array_equal(pixels(both), pixels(swapped))


async def test_the_pooled_vector_is_read_at_the_prompts_end_although_new_ids_are_higher(worker, kept):
    """CLIP configs of before 2023 look for the highest id, and new words have higher ones than the end mark."""

    def pooled(pipe):
        from worker.engine.adapters.embeddings import Word, embedded

        encoder, seen = pipe.text_encoder_2, []
        end, encoder.text_model.eos_token_id = encoder.text_model.eos_token_id, 2
        try:
            with embedded(pipe, [Word("jinx", {"clip_g": vectors(1)}, "x")], "embeddings"), torch.no_grad():
                for eos in (2, 513):
                    encoder.text_model.eos_token_id = eos
                    ids = pipe.tokenizer_2("a jinx cat", padding="max_length", return_tensors="pt").input_ids
                    assert int(ids.max()) > 513
                    seen.append(encoder(ids)[0])
        finally:
            encoder.text_model.eos_token_id = end
        return seen

    await handled(worker, model="tiny-xl", prompt="x")
    first, second = on_engine(worker, pooled)
    assert torch.equal(first, second)


async def test_nothing_is_left_after_a_job_also_where_it_failed(worker, kept):
    word = kept("jinx.safetensors", {"emb_params": vectors(2)})
    before = await draw(worker, prompt="a jinx cat")

    def state(pipe):
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.text_encoder.modules()]
        return (
            sum(hooks),
            id(pipe.tokenizer),
            len(pipe.tokenizer),
            pipe.text_encoder.get_input_embeddings().weight.shape,
        )

    untouched = on_engine(worker, state)
    await draw(worker, prompt="a jinx cat", embeddings=[word])
    assert on_engine(worker, state) == untouched
    assert np.array_equal(pixels(await draw(worker, prompt="a jinx cat")), pixels(before))
    on_engine(worker, lambda pipe: failing_once(pipe, "vae", RuntimeError("broken")))
    with pytest.raises(WorkerError):
        await draw(worker, prompt="a jinx cat", embeddings=[word])
    assert np.array_equal(pixels(await draw(worker, prompt="a jinx cat")), pixels(before))


async def test_what_reproduce_says_draws_the_same_image(worker, kept):
    word = {"model": kept("jinx.safetensors", {"emb_params": vectors(2)}), "token": "jinx"}
    first = await handled(worker, prompt="a (jinx:1.2) cat", prompt_weighting="a1111", embeddings=[word])
    again = await handled(worker, **first["reproduce"]["input"])
    assert np.array_equal(pixels(first), pixels(again))


REFUSED = {
    "wide": ("tiny", {"emb_params": vectors(2, 48)}, "words of 48 numbers, and tiny has 32"),
    "sdxl": ("tiny", {"emb_params": vectors(2, 1280)}, "was made for Stable Diffusion XL"),
    "pair": ("tiny", {"clip_l": vectors(1), "clip_g": vectors(1)}, "was made for Stable Diffusion XL"),
    "t5": ("tiny-xl", {"clip_l": vectors(1), "t5xxl": vectors(1, 64)}, "was made for FLUX.1"),
    "half": ("tiny-xl", {"clip_l": vectors(1), "clip_g": vectors(1, 48)}, "words of 48 numbers for clip_g"),
    "vae": ("tiny", {"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}, "not a textual inversion"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_does_not_fit_is_refused_before_the_model_is_loaded(worker, kept, case):
    model, tensors, words = REFUSED[case]
    with pytest.raises(IncompatibleAdapter, match=words) as failure:
        await draw(worker, model=model, embeddings=[kept("x.safetensors", tensors)])
    assert failure.value.field == "embeddings"
    assert worker.engine.resident_models == []


async def test_a_pickle_needs_the_operators_leave(worker, kept):
    with pytest.raises(UnsafeFormat, match="pickle") as failure:
        await draw(worker, embeddings=[kept("x.pt", {"string_to_param": {"*": vectors(1)}})])
    assert failure.value.field == "embeddings"
    assert worker.engine.resident_models == []


async def test_two_words_of_one_name_are_refused_by_name(worker, kept):
    first, second = kept("a.safetensors", {"emb_params": vectors(1)}), kept("b.safetensors", {"emb_params": vectors(1)})
    with pytest.raises(IncompatibleAdapter, match="are both called Jinx"):
        await draw(worker, embeddings=[{"model": first, "token": "jinx"}, {"model": second, "token": "Jinx"}])
    assert worker.engine.resident_models == []


@pytest.mark.parametrize("token", [" x", "x\n", "x" * 65])  # a blank one says nothing
async def test_a_token_is_words_of_bounded_length(worker, kept, token):
    with pytest.raises(WorkerError) as failure:
        await draw(worker, embeddings=[{"model": kept("a.safetensors", {"emb_params": vectors(1)}), "token": token}])
    assert failure.value.field == "embeddings"
    assert worker.engine.resident_models == []


@pytest.mark.parametrize("field", ["embeddings", "hypernetworks", "prompt_weighting"])
async def test_families_without_it_refuse_the_field_by_name(worker, field):
    value = "a1111" if field == "prompt_weighting" else ["org/x"]
    with pytest.raises(UnknownParameter, match=field) as failure:
        await draw(worker, model="video", **{field: value})
    assert failure.value.field == field
    assert worker.engine.resident_models == []
