"""Merged weights: as good as hooks, within a budget, made once for a set of LoRAs, and gone without a trace."""

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import loras
from tests.engine.lora_bench import adapter, host
from tests.engine.test_lora_algorithms import ALGORITHMS, NORM
from worker.core.errors import JobCancelled
from worker.engine.adapters import merging
from worker.engine.adapters.lora import LoraCache
from worker.engine.adapters.merging import MergeCache
from worker.engine.adapters.targets import modules_of

X = loras.normal(2, 32, 6, 6, seed=3)


class Net(nn.Module):
    """Two of each layer that a LoRA changes, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)
        self.conv, self.point = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.norm = nn.LayerNorm(32)

    def forward(self, x):
        last = self.norm(x.movedim(1, -1))
        return self.point(self.conv(x) + self.second(torch.relu(self.first(last))).movedim(-1, 1))


@pytest.fixture
def pipe():
    torch.manual_seed(5)
    net = Net().eval().requires_grad_(False)
    return SimpleNamespace(components={"transformer": net}, transformer=net)


def files(pipe, folder, count=1, make=loras.lora, paths=("first", "second", "conv", "point")):
    made = [loras.build(pipe, "transformer", paths, make, seed=7 * index) for index in range(count)]
    return [adapter(item, folder / f"{index}.safetensors", 0.8) for index, item in enumerate(made)]


def with_loras(cache, pipe, adapters, **options):
    """The output with `adapters`, and the number of layers that have a hook."""
    bare = host(pipe, "tiny")
    for name, value in options.items():
        setattr(bare, name, value)
    with cache.applied(bare, adapters):
        return pipe.transformer(X), sum(bool(module._forward_hooks) for module in pipe.transformer.modules())


def addresses(pipe):
    return [parameter.data_ptr() for parameter in pipe.transformer.parameters()]


def test_modules_are_walked_as_torch_walks_them(pipe):
    net = pipe.transformer
    net.again, net.none, net.inner = (
        net.first,
        None,
        nn.ModuleList([nn.Sequential(net.conv, nn.SiLU()), nn.Linear(1, 1)]),
    )
    assert [*modules_of(net).items()] == [*net.named_modules()]


@pytest.mark.parametrize("algorithm", [name for name, (_, where) in ALGORITHMS.items() if where != NORM])
def test_merged_is_what_hooks_add(pipe, tmp_path, algorithm):
    make, where = ALGORITHMS[algorithm]
    paths = ("conv", "point") if "conv" in where else ("first", "second")
    adapters = [*files(pipe, tmp_path / "a", make=make, paths=paths), *files(pipe, tmp_path / "b")]
    plain = pipe.transformer(X)
    hooked, layers = with_loras(LoraCache(2, MergeCache(2, 0)), pipe, adapters)
    merged, left = with_loras(LoraCache(2), pipe, adapters)
    assert (layers, left) == (4, 0)
    assert (hooked - plain).abs().max() > 0.01
    assert torch.allclose(merged, hooked, atol=2e-5 * float(hooked.abs().max()))


def test_a_norm_keeps_its_hook_beside_merged_layers(pipe, tmp_path):
    adapters = [*files(pipe, tmp_path / "a", make=loras.norm, paths=["norm"]), *files(pipe, tmp_path / "b")]
    hooked, _ = with_loras(LoraCache(2, MergeCache(2, 0)), pipe, adapters)
    merged, left = with_loras(LoraCache(2), pipe, adapters)
    assert left == 1
    assert torch.allclose(merged, hooked, atol=1e-5)


def test_after_fifty_switches_the_weights_are_the_very_tensors_that_were_loaded(pipe, tmp_path, monkeypatch):
    merges = []
    original = MergeCache._merged
    monkeypatch.setattr(MergeCache, "_merged", lambda *args: merges.append(1) or original(*args))
    before, values = addresses(pipe), [parameter.clone() for parameter in pipe.transformer.parameters()]
    cache, (one, two, three) = LoraCache(4), files(pipe, tmp_path, 3)
    outputs = {}
    for turn in range(50):
        chosen = ([one], [two], [one, two, three])[turn % 3]
        output, _ = with_loras(cache, pipe, chosen)
        assert torch.equal(output, outputs.setdefault(turn % 3, output))
        assert addresses(pipe) == before
    assert len(merges) == 3  # sets that take turns are merged once each
    assert all(torch.equal(a, b) for a, b in zip(pipe.transformer.parameters(), values, strict=True))


@pytest.mark.parametrize("after", [0, 2])
def test_a_job_that_stops_amid_the_merge_has_touched_nothing(pipe, tmp_path, after):
    layers = []

    def check():
        layers.append(addresses(pipe))
        if len(layers) > after:
            raise JobCancelled("stop")

    cache, adapters, before = LoraCache(2), files(pipe, tmp_path), addresses(pipe)
    with pytest.raises(JobCancelled):
        with_loras(cache, pipe, adapters, check=check)
    assert addresses(pipe) == before
    assert cache._merges.byte_size == 0
    assert with_loras(cache, pipe, adapters)[1] == 0


def test_a_failure_inside_the_job_gives_the_weights_back_too(pipe, tmp_path):
    cache, adapters, before = LoraCache(2), files(pipe, tmp_path), addresses(pipe)
    with pytest.raises(KeyboardInterrupt), cache.applied(host(pipe, "tiny"), adapters):
        assert addresses(pipe) != before
        raise KeyboardInterrupt
    assert addresses(pipe) == before


def test_memory_that_runs_out_leaves_hooks(pipe, tmp_path, monkeypatch):
    adapters = files(pipe, tmp_path)
    hooked, _ = with_loras(LoraCache(2, MergeCache(2, 0)), pipe, adapters)
    original, calls = merging._copies, []

    def short(layer, parts):
        calls.append(layer)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(layer, parts)

    monkeypatch.setattr(merging, "_copies", short)
    output, layers = with_loras(LoraCache(2), pipe, adapters)
    assert layers == 4
    assert torch.equal(output, hooked)


def test_layers_beyond_the_budget_are_hooked(pipe, tmp_path):
    adapters = files(pipe, tmp_path)
    sizes = {name: merging._size(layer) for name, layer in pipe.transformer.named_children()}
    hooked, _ = with_loras(LoraCache(2, MergeCache(2, 0)), pipe, adapters)
    for room, left in ((sizes["first"] + sizes["second"], 2), (sizes["first"] - 1, 2), (10, 4)):
        cache = LoraCache(2, MergeCache(2, room))
        output, layers = with_loras(cache, pipe, adapters)
        assert layers >= left
        assert cache._merges.byte_size <= room
        assert torch.allclose(output, hooked, atol=1e-4)


def test_without_a_limit_half_of_what_a_job_leaves_is_the_budget_for_all_copies(pipe, tmp_path):
    one, two = files(pipe, tmp_path, 2)
    cache, total = LoraCache(4), sum(map(merging._size, pipe.transformer.children())) - 256
    free = int(3.5 * total)

    def room():
        return free - cache._merges.byte_size

    assert with_loras(cache, pipe, [one], room=room)[1] == 0
    assert with_loras(cache, pipe, [two], room=room)[1] == 0
    kept = next(iter(cache._merges._kept.values()))
    assert [key[0][0] for key in kept] == [two.key]  # both together would be more than half
    assert with_loras(LoraCache(4), pipe, [one], room=lambda: -1)[1] == 4


def test_as_many_sets_are_kept_as_loras(pipe, tmp_path):
    one, two = files(pipe, tmp_path, 2)
    for capacity, kept in ((0, 0), (1, 1), (4, 2)):
        cache = LoraCache(capacity)
        for adapters in ([one], [two]):
            assert with_loras(cache, pipe, adapters)[1] == 0
        assert [len(merges) for merges in cache._merges._kept.values()] == [kept]


def test_weights_that_are_not_plain_keep_their_hooks(pipe, tmp_path):
    adapters, net = files(pipe, tmp_path), pipe.transformer
    hooked, _ = with_loras(LoraCache(2, MergeCache(2, 0)), pipe, adapters)
    net.conv.forward = net.conv.forward  # as accelerate wraps it
    net.point.weight = type("Packed", (nn.Parameter,), {})(net.point.weight)
    net.second._hf_hook = None
    assert with_loras(LoraCache(2), pipe, adapters)[1] == 4  # some weights come and go: all are left alone
    del net.second._hf_hook
    output, layers = with_loras(LoraCache(2), pipe, adapters)
    assert layers == 2
    assert torch.allclose(output, hooked, atol=1e-5)


def test_two_layers_of_one_weight_keep_their_hooks(pipe, tmp_path):
    net = pipe.transformer
    net.twin = nn.Linear(32, 64)
    net.twin.weight = net.first.weight
    assert with_loras(LoraCache(2), pipe, files(pipe, tmp_path))[1] == 1


def test_copies_of_weights_that_were_since_replaced_are_made_anew(pipe, tmp_path):
    cache, adapters = LoraCache(2), files(pipe, tmp_path)
    with_loras(cache, pipe, adapters)
    old = [parameter.data for parameter in pipe.transformer.parameters()]
    for parameter in pipe.transformer.parameters():
        parameter.data = parameter.data * 2
    output, _ = with_loras(cache, pipe, adapters)
    assert torch.equal(output, with_loras(LoraCache(2), pipe, adapters)[0])
    assert len(old) == 10


def test_a_layers_memory_layout_and_precision_stay(pipe, tmp_path):
    adapters = files(pipe, tmp_path)
    pipe.transformer.to(torch.bfloat16, memory_format=torch.channels_last)
    before = [(p.stride(), p.dtype) for p in pipe.transformer.parameters()]
    with LoraCache(2).applied(host(pipe, "tiny"), adapters):
        assert [(p.stride(), p.dtype) for p in pipe.transformer.parameters()] == before
        assert not any(module._forward_hooks for module in pipe.transformer.modules())


def test_copies_go_with_their_pipeline(pipe, tmp_path):
    cache = LoraCache(2)
    with_loras(cache, pipe, files(pipe, tmp_path))
    assert cache._merges.byte_size > 0
    pipe.components.clear()
    del pipe.transformer
    gc.collect()
    assert cache._merges.byte_size == 0


async def test_a_load_has_the_memory_of_the_copies(task_worker, zoo):
    from tests.asking import perform

    worker = task_worker(max_resident_models=2)
    lora = f"file:{zoo}/models/lora.safetensors"

    def held():
        return worker.engine.submit(lambda engine: engine._adapters._merges.byte_size, "test").result()

    job = {"prompt": "red", "width": 64, "height": 64}
    await perform(worker, {**job, "model": "sd1", "loras": [lora]})
    assert held() > 0
    await perform(worker, {**job, "model": "sd1"})
    assert held() > 0
    await perform(worker, {**job, "model": "edit", "image": _image()})
    assert held() == 0


def _image():
    from tests.images import encoded, gradient

    return encoded(gradient(64, 64))


@pytest.mark.slow
def test_a_compiled_model_reads_the_copies_without_being_compiled_again(pipe, tmp_path):
    from torch._dynamo.testing import CompileCounter

    one, two = files(pipe, tmp_path, 2)
    cache, plain = LoraCache(2), pipe.transformer(X)
    expected = [with_loras(LoraCache(2), pipe, [each])[0] for each in (one, two)]
    counter = CompileCounter()
    pipe.transformer.compile(backend=counter)
    assert torch.equal(pipe.transformer(X), plain)
    for each, output in zip((one, two, one), (*expected, expected[0]), strict=True):
        assert torch.equal(with_loras(cache, pipe, [each])[0], output)
        assert torch.equal(pipe.transformer(X), plain)
    assert counter.frame_count == 1
