"""The cache: LoRAs that stay for the next job, weights by component, bundled words, and what failures leave."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import loras
from tests.engine.lora_bench import Bench, adapter, assert_same, host
from tests.engine.test_lora_dialects import SETS, paths
from tests.images import assert_all_differ, assert_differs
from tests.loras import AB, Lora
from worker.core.errors import CorruptFile, IncompatibleAdapter, JobCancelled, UnsupportedModel
from worker.engine.adapters import lora as lora_module
from worker.engine.adapters.lora import LoraCache


@pytest.fixture
def bench(benches):
    return benches("sd1")


@pytest.fixture
def xl(benches):
    return benches("sdxl")


def plain(bench: Bench, seed: int = 11, which: str = "narrow") -> Lora:
    numbers = loras.low_rank(bench.pipe, paths(bench, SETS["unet", which]), seed=seed)
    return Lora(loras.spelled(numbers, loras.kohya), deltas=loras.deltas_of(numbers))


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that were read."""
    seen: list[str] = []
    original = lora_module.read_tensors

    def read(file):
        seen.append(file.files.root.name)
        return original(file)

    monkeypatch.setattr(lora_module, "read_tensors", read)
    return seen


def test_a_resident_lora_is_not_read_again_and_an_unused_one_changes_nothing(bench, tmp_path, reads):
    bench.cache = LoraCache(2)
    file = adapter(plain(bench), tmp_path / "a.safetensors")
    first, _ = bench.applied([file])
    assert np.array_equal(bench.draw(), bench.plain)  # resident, and as if it never had been there
    bench.assert_untouched()
    file.files.root.unlink()
    again, (report,) = bench.applied([file])
    assert np.array_equal(again, first)
    assert (reads, report.matched) == (["a.safetensors"], report.total)


def test_a_resident_lora_is_known_by_what_it_holds_not_by_its_name(bench, tmp_path, reads):
    bench.cache = LoraCache(2)
    one = adapter(plain(bench, 1), tmp_path / "x.safetensors")
    image, _ = bench.applied([one])
    two = adapter(plain(bench, 2), tmp_path / "x.safetensors")
    other, _ = bench.applied([two])
    same, _ = bench.applied([adapter(plain(bench, 2), tmp_path / "copy.safetensors")])
    assert len(reads) == 2
    assert_differs(image, other)
    assert np.array_equal(other, same)


@pytest.mark.parametrize(("capacity", "read"), [(2, "abcb"), (0, "abacab")])
def test_the_least_recently_used_goes_first_and_zero_keeps_none(bench, tmp_path, reads, capacity, read):
    bench.cache = LoraCache(capacity)
    files = {name: adapter(plain(bench, seed), tmp_path / name) for seed, name in enumerate("abc")}
    for name in "abacab":
        bench.applied([files[name]])
    assert "".join(reads) == read


def test_a_job_with_more_loras_than_the_shelf_holds_has_them_all(bench, tmp_path):
    bench.cache = LoraCache(1)
    stack = [(plain(bench, seed), 0.5) for seed in range(3)]
    with loras.merged(bench.pipe, stack):
        reference = bench.draw()
    image, _ = bench.applied([adapter(item, tmp_path / f"{i}", weight) for i, (item, weight) in enumerate(stack)])
    assert_same(image, reference)
    assert [len(cache) for cache in bench.cache._caches.values()] == [1]


def test_the_same_lora_twice_counts_twice(bench, tmp_path):
    item = plain(bench)
    with loras.merged(bench.pipe, [(item, 0.7)]):
        reference = bench.draw()
    image, _ = bench.applied([adapter(item, tmp_path / "a", 0.5), adapter(item, tmp_path / "a", 0.2)])
    assert_same(image, reference)


def test_resident_loras_go_with_their_pipeline(tmp_path):
    cache = LoraCache(4)
    owner = Bench("sd1", tmp_path)
    owner.cache = cache
    owner.applied([adapter(plain(owner), tmp_path / "a.safetensors")])
    resident = weakref.ref(next(iter(next(iter(cache._caches.values())).values())))
    owner.pipe = None
    del owner
    gc.collect()
    assert (len(cache._caches), resident()) == (0, None)


def failing(error: BaseException):
    def forward(*_args, **_kwargs):
        raise error

    return forward


@pytest.mark.parametrize(
    "error",
    [RuntimeError("broken"), JobCancelled("stop"), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()],
)
def test_whatever_ends_a_job_the_next_is_as_if_it_had_not_been(bench, tmp_path, monkeypatch, error):
    bench.cache = LoraCache(2)
    bundle = {"bundle_emb.mywrd.string_to_param.*": loras.normal(2, 32, seed=4)}
    file = adapter(Lora(plain(bench, which="wide").tensors | bundle), tmp_path / "a.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(bench.pipe.unet.conv_out, "forward", failing(error))
        with pytest.raises(type(error)):
            bench.applied([file])
    bench.assert_untouched()
    assert np.array_equal(bench.draw(), bench.plain)
    assert len(bench.pipe.tokenizer) == 514
    if isinstance(error, torch.OutOfMemoryError):
        assert not any(bench.cache._caches.values())  # what could be given back was


def test_a_second_lora_that_does_not_fit_leaves_the_first_off(bench, xl, tmp_path):
    good, bad = adapter(plain(bench), tmp_path / "a"), adapter(plain(xl), tmp_path / "b")
    with pytest.raises(IncompatibleAdapter) as failure:
        bench.applied([good, bad])
    details = failure.value.details
    assert details["matched"] < 0.5 * details["total"]
    assert len(details["samples"]) == 3
    bench.assert_untouched()
    assert np.array_equal(bench.draw(), bench.plain)


def test_a_file_that_was_damaged_after_it_was_checked_is_named(bench, tmp_path):
    file = adapter(plain(bench), tmp_path / "a.safetensors")
    file.files.root.write_bytes(b"\0" * 64)
    bench.cache = LoraCache(1)
    with pytest.raises(CorruptFile, match=r"a\.safetensors"):
        bench.applied([file])


# --- how much of a file has to fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "fits"), [(1, True), (2, False)])
def test_at_least_95_percent_of_the_denoisers_layers_have_to_match(bench, tmp_path, lost, fits):
    item = plain(bench)  # 32 layers
    stems = sorted({key.split(".")[0] for key in item.tensors})
    for stem in stems[:lost]:
        item.tensors = {key.replace(stem, stem.replace("attn", "gone")): value for key, value in item.tensors.items()}
    file = adapter(item, tmp_path / "x.safetensors")
    if fits:
        _, (report,) = bench.applied([file])
        assert (report.matched, report.total) == (31, 32)
        assert "gone" in report.unmatched[0]
        return
    with pytest.raises(IncompatibleAdapter, match="30 of its 32 layers"):
        bench.applied([file])
    bench.assert_untouched()


def test_keys_of_a_text_encoder_that_the_model_lacks_are_counted_and_not_fatal(xl, tmp_path):
    """OneTrainer writes a third encoder's keys into SDXL files, and diffusers then loads nothing at all."""
    item = plain(xl)
    reference = xl.reference("plain", [(item, 1.0)])
    stray = {
        f"lora_te3_encoder_block_{i}_layer_0_SelfAttention_q.lora_{side}.weight": torch.ones(4, 4)
        for i in range(9)
        for side in ("down", "up")
    }
    image, (report,) = xl.applied([adapter(Lora(item.tensors | stray), tmp_path / "x.safetensors")])
    assert_same(image, reference)
    assert report.total - report.matched == 9
    assert "SelfAttention" in report.unmatched[0]


def test_tensors_of_an_unknown_algorithm_count_against_the_file(bench, tmp_path):
    item = plain(bench)
    item.tensors |= {f"lora_unet_x_{i}.some_new_thing": torch.ones(2) for i in range(3)}
    with pytest.raises(IncompatibleAdapter, match="32 of its 35"):
        bench.applied([adapter(item, tmp_path / "x.safetensors")])


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_by_component_and_block_replace_the_weight(bench, tmp_path):
    item = plain(bench, which="wide")
    weights = {"text_encoder": 0.3, "unet.down_blocks": 0.0, "unet.up_blocks.1.attentions.0": 1.4}

    def part(component: str, start: str, without: tuple[str, ...] = ()) -> Lora:
        return Lora(
            deltas={
                place: delta
                for place, delta in item.deltas.items()
                if place[0] == component and place[1].startswith(start) and not place[1].startswith(without)
            }
        )

    parts = [
        (part("text_encoder", ""), 0.3),
        (part("unet", "up_blocks.1.attentions.0."), 1.4),
        (part("unet", "", ("down_blocks", "up_blocks.1.attentions.0.")), 0.8),
    ]
    with loras.merged(bench.pipe, parts):
        reference = bench.draw()
    image, _ = bench.applied([adapter(item, tmp_path / "x.safetensors", 0.8, weights=weights)])
    assert_same(image, reference)


def test_a_model_with_two_denoisers_gets_a_lora_on_both_unless_a_weight_says_otherwise(tmp_path):
    parts = {name: torch.nn.ModuleDict({"proj": torch.nn.Linear(8, 8)}) for name in ("transformer", "transformer_2")}
    pipe = SimpleNamespace(components=parts, **parts)
    down, up, x = loras.normal(4, 8, seed=1), loras.normal(8, 4, seed=2), loras.normal(3, 8, seed=3)
    item = Lora({"transformer.proj.lora_A.weight": down, "transformer.proj.lora_B.weight": up})
    item.metadata = {"lora_adapter_metadata": '{"transformer.lora_alpha": 2, "transformer.r": 4}'}
    before = {name: part["proj"](x) for name, part in parts.items()}
    added = 0.5 * x @ down.T @ up.T
    cache = LoraCache(1)
    for weights, wanted in (({}, (1, 1)), ({"transformer_2": 0.0}, (1, 0)), ({"transformer": 0.0}, (0, 1))):
        with cache.applied(host(pipe, "wan"), [adapter(item, tmp_path / "x.safetensors", weights=weights)]):
            for (name, part), factor in zip(parts.items(), wanted, strict=True):
                assert torch.allclose(part["proj"](x), before[name] + factor * added, atol=1e-5)
    assert all(torch.equal(part["proj"](x), before[name]) for name, part in parts.items())


def test_weight_zero_is_bit_equal_to_no_lora(bench, tmp_path):
    image, _ = bench.applied([adapter(plain(bench), tmp_path / "x.safetensors", 0.0)])
    assert np.array_equal(image, bench.plain)


@pytest.mark.parametrize("name", ["transformer", "unet.nowhere", "vae.decoder.x"])
def test_a_weight_for_what_the_model_does_not_have_is_refused(bench, tmp_path, name):
    with pytest.raises(IncompatibleAdapter, match=r"components are .*unet") as failure:
        bench.applied([adapter(plain(bench), tmp_path / "x.safetensors", weights={name: 1.0})])
    assert name in failure.value.message
    bench.assert_untouched()


# --- words that come with a LoRA ------------------------------------------------------------------------------------


def test_bundled_words_are_known_for_one_job_and_equal_an_embedding_by_hand(bench, tmp_path):
    vectors = loras.normal(2, 32, seed=4, scale=0.3)
    item = plain(bench)
    file = adapter(
        Lora(
            item.tensors | {"bundle_emb.mywrd.string_to_param.*": vectors},
            {"modelspec.trigger_phrase": "in style, red"},
        ),
        tmp_path / "x.safetensors",
    )
    before = bench.draw("mywrd cat")
    image, (report,) = bench.applied([file], "mywrd cat")
    assert report.trigger_words == ("in style", "red", "mywrd")
    # by hand: two new tokens at the end of a longer table
    encoder, tokenizer = bench.pipe.text_encoder, bench.pipe.tokenizer
    table = encoder.get_input_embeddings()
    longer = torch.nn.Embedding(516, 32, _weight=torch.cat([table.weight.data, vectors]))
    ids = tokenizer("mywrd cat", padding="max_length", max_length=77).input_ids
    word = tokenizer("mywrd", add_special_tokens=False).input_ids
    ids = [ids[0], 514, 515, *ids[1 + len(word) :]]
    ids += [513] * (77 - len(ids))
    encoder.set_input_embeddings(longer)
    try:
        with torch.no_grad(), loras.merged(bench.pipe, [(item, 1.0)]):
            hidden = encoder(torch.tensor([ids]))[0]
            negative = encoder(tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids)[0]
            reference = bench.pipe(
                prompt_embeds=hidden, negative_prompt_embeds=negative, num_inference_steps=2, width=32, height=32,
                generator=torch.Generator().manual_seed(0), output_type="np",
            ).images  # fmt: skip
    finally:
        encoder.set_input_embeddings(table)
    assert_same(image, reference)
    assert np.array_equal(bench.draw("mywrd cat"), before)
    assert bench.pipe.tokenizer is tokenizer
    bench.assert_untouched()


def test_a_word_for_two_encoders_changes_both(xl, tmp_path):
    item = plain(xl)
    words = {f"bundle_emb.mywrd.{part}": loras.normal(1, 32, seed=i) for i, part in enumerate(("clip_l", "clip_g"))}
    one, _ = xl.applied([adapter(item, tmp_path / "a")], "mywrd")
    two, _ = xl.applied([adapter(Lora(item.tensors | words), tmp_path / "b")], "mywrd")
    only = {key: value for key, value in words.items() if key.endswith("clip_l")}
    three, _ = xl.applied([adapter(Lora(item.tensors | only), tmp_path / "c")], "mywrd")
    assert_all_differ(one, two, three)
    xl.assert_untouched()


def test_words_of_another_width_are_refused_and_leave_nothing(bench, tmp_path):
    words = {"bundle_emb.mywrd.string_to_param.*": loras.normal(1, 48, seed=4)}
    with pytest.raises(IncompatibleAdapter, match="48"):
        bench.applied([adapter(Lora(plain(bench).tensors | words), tmp_path / "x")])
    bench.assert_untouched()


# --- where the weights are elsewhere --------------------------------------------------------------------------------


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("algorithm", ["lora", "dora", "ia3", "full"])
def test_offloaded_weights_give_the_same_image(tmp_path, algorithm):
    """accelerate's sequential offload, the CPU standing in for the device: weights are on no device between calls."""
    from accelerate import cpu_offload

    from tests.engine.test_lora_algorithms import built

    owner = Bench("sd1", tmp_path)
    item = built(owner, "sd1", algorithm)
    with loras.merged(owner.pipe, [(item, 1.0)]):
        reference = owner.draw()
    cpu_offload(owner.pipe.unet, torch.device("cpu"), offload_buffers=True)
    assert next(owner.pipe.unet.parameters()).is_meta
    image, _ = owner.applied([adapter(item, tmp_path / "x.safetensors")])
    assert_same(image, reference)
    assert np.array_equal(owner.draw(), owner.plain)


def test_a_quantized_layer_takes_what_does_not_need_its_weights(tmp_path):
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    owner = Bench("sd1", tmp_path)
    path = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    stem, _, name = path.rpartition(".")
    layer = owner.pipe.unet.get_submodule(path)
    numbers = gguf.quants.quantize(layer.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
    plain_layer = torch.nn.Linear(32, 32, bias=False)
    quantized = GGUFLinear(32, 32, bias=False, compute_dtype=torch.float32)
    quantized.weight = GGUFParameter(torch.tensor(numbers), quant_type=gguf.GGMLQuantizationType.Q8_0)
    plain_layer.weight.data = dequantize_gguf_tensor(quantized.weight).float()
    items = {}
    for algorithm, make in {"lora": loras.lora, "loha": loras.loha, "lokr": loras.lokr, "ia3": loras.ia3}.items():
        items[algorithm] = loras.build(owner.pipe, "unet", [path], make)
    for algorithm, item in items.items():
        setattr(owner.pipe.unet.get_submodule(stem), name, plain_layer)
        if algorithm == "ia3":  # a multiple of the weight: of the one that is there
            vector = item.tensors["lora_unet_" + path.replace(".", "_") + ".weight"]
            item.deltas["unet", path] = (plain_layer.weight.detach().double() * vector.double()[:, None], None)
        with loras.merged(owner.pipe, [(item, 1.0)]):
            reference = owner.draw()
        setattr(owner.pipe.unet.get_submodule(stem), name, quantized)
        image, _ = owner.applied([adapter(item, tmp_path / f"{algorithm}.safetensors")])
        assert_same(image, reference)
    stored = loras.lora(plain_layer.weight.detach().double(), 0)
    dora, _, _ = loras.decomposed(stored, plain_layer.weight.detach().double(), 1)
    item = Lora({f"lora_unet_{path.replace('.', '_')}.{role}": tensor for role, tensor in dora.items()})
    with pytest.raises(UnsupportedModel, match="quantized"):
        owner.applied([adapter(item, tmp_path / "dora.safetensors")])


@pytest.mark.parametrize("name", ["a", "b"])
def test_peft_keys_without_a_config_are_scaled_by_one(bench, tmp_path, name):
    numbers = loras.low_rank(bench.pipe, paths(bench, SETS["unet", "narrow"]), seed=11)
    numbers = {place: (down, up, float(down.shape[0])) for place, (down, up, _) in numbers.items()}
    tensors = loras.spelled(numbers, lambda _, path: f"base_model.model.{path}", ends=AB, alphas=False)
    reference = bench.reference("unscaled", [(Lora(deltas=loras.deltas_of(numbers)), 1.0)])
    config = {"use_rslora": True, "lora_alpha": loras.RANK**0.5} if name == "b" else None
    image, _ = bench.applied([adapter(Lora(tensors, config=config), tmp_path / f"{name}.safetensors")])
    assert_same(image, reference)
