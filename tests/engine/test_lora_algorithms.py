"""Every algorithm on linear layers, convolutions and norms, and stacks of them, against a merge computed by hand."""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from tests import loras
from tests.engine.lora_bench import Bench, adapter, assert_same, host
from tests.engine.test_lora_dialects import SETS, paths
from tests.images import assert_differs
from tests.loras import Lora, Made
from worker.core.errors import IncompatibleAdapter, UnsupportedModel

LINEAR = r"transformer_blocks\.\d+\.attn2\.to_(q|k|v|out\.0)$|ff\.net\.2$"
BIASED = r"attn[12]\.to_out\.0$|ff\.net\.(0\.proj|2)$|time_emb_proj$"
CONVOLUTION = r"resnets\.\d+\.conv[12]$|(down|up)samplers\.0\.conv$"
POINTWISE = r"attentions\.\d+\.proj_(in|out)$"
NORM = r"(transformer_blocks\.\d+\.norm\d|attentions\.\d+\.norm|resnets\.\d+\.norm\d)$"
FLUX = r"^(single_)?transformer_blocks\.\d+\.(attn\.(to|add)_\w+(\.0)?|ff\.net\.2|proj_mlp)$"


def _dora(make: Callable[..., Made], *, by_rows: bool = True) -> Callable[..., Made]:
    return lambda weight, seed: loras.decomposed(make(weight, seed), weight, seed + 9, by_rows=by_rows)


ALGORITHMS = {
    "lora": (loras.lora, LINEAR),
    "lora of convolutions": (loras.lora, CONVOLUTION),
    "lora of 1x1 convolutions": (loras.lora, POINTWISE),
    "lora with a core": (loras.locon_tucker, CONVOLUTION),
    "loha": (loras.loha, LINEAR),
    "loha of convolutions": (loras.loha, CONVOLUTION),
    "loha with cores": (loras.loha_tucker, CONVOLUTION),
    "lokr": (loras.lokr, LINEAR),
    "lokr, factor 8": (partial(loras.lokr, factor=8), LINEAR),
    "lokr, factor 2": (partial(loras.lokr, factor=2), LINEAR),
    "lokr, whole w2": (partial(loras.lokr, whole=True), LINEAR),
    "lokr, whole w2, halves of w1": (partial(loras.lokr, whole=True, both=True), LINEAR),
    "lokr, halves of both": (partial(loras.lokr, both=True), LINEAR),
    "lokr of convolutions": (loras.lokr, CONVOLUTION),
    "lokr of convolutions, whole w2": (partial(loras.lokr, whole=True), CONVOLUTION),
    "lokr with a core": (partial(loras.lokr, tucker=True), CONVOLUTION),
    "dora": (_dora(loras.lora), LINEAR),
    "dora by columns": (_dora(loras.lora, by_rows=False), LINEAR),
    "dora of convolutions": (_dora(loras.lora), CONVOLUTION),
    "dora of convolutions by columns": (_dora(loras.lora, by_rows=False), CONVOLUTION),
    "loha+dora": (_dora(loras.loha), LINEAR),
    "lokr+dora": (_dora(partial(loras.lokr, whole=True)), LINEAR),
    "full": (loras.full, LINEAR),
    "full with biases": (partial(loras.full, with_bias=True), BIASED),
    "full of convolutions": (partial(loras.full, with_bias=True), CONVOLUTION),
    "norms": (loras.norm, NORM),
    "ia3": (loras.ia3, LINEAR),
    "ia3 on inputs": (partial(loras.ia3, on_input=True), LINEAR),
    "ia3 of convolutions": (loras.ia3, CONVOLUTION),
    "ia3 of convolutions on inputs": (partial(loras.ia3, on_input=True), CONVOLUTION),
    "glora": (loras.glora, LINEAR),
    "glora, first layout": (partial(loras.glora, first_layout=True), LINEAR),
    "glora of 1x1 convolutions": (loras.glora, POINTWISE),
    "oft": (loras.oft, LINEAR),
    "oft, constrained and rescaled": (partial(loras.oft, constraint=0.004, rescaled=True), LINEAR),
    "oft of convolutions": (partial(loras.oft, rescaled=True), CONVOLUTION),
}
CASES = [(family, name) for family in ("sd1", "sdxl") for name in ALGORITHMS]
CASES += [("flux", name) for name, (_, where) in ALGORITHMS.items() if where == LINEAR]


def built(bench: Bench, family: str, name: str, seed: int = 3) -> Lora:
    """A file of one algorithm for the denoiser of a family."""
    make, where = ALGORITHMS[name]
    component = "transformer" if family == "flux" else "unet"
    where = FLUX if family == "flux" else where
    part = getattr(bench.pipe, component)
    found = [
        path for path, m in part.named_modules() if getattr(m, "weight", None) is not None and re.search(where, path)
    ]
    return loras.build(bench.pipe, component, found, make, seed=seed)


@pytest.mark.parametrize(("family", "name"), CASES, ids=[f"{family}-{name}" for family, name in CASES])
@pytest.mark.quick_rows(4)
def test_every_algorithm_draws_what_the_merge_draws(benches, tmp_path, family, name):
    bench = benches(family)
    lora = built(bench, family, name)
    with loras.merged(bench.pipe, [(lora, 0.7)]):
        reference = bench.draw()
    image, (report,) = bench.applied([adapter(lora, tmp_path / "x.safetensors", 0.7)])
    assert_same(image, reference)
    assert_differs(reference, bench.plain)
    assert report.matched == report.total > 0
    assert report.algorithm == {"norms": "full"}.get(name, name.split(" ")[0].rstrip(","))
    bench.assert_untouched()


STACKS = {
    "sd1": ("lora", "loha of convolutions", "norms"),
    "sdxl": ("dora", "lokr", "full"),
    "flux": ("lokr, whole w2", "oft", "dora by columns"),
}


@pytest.mark.parametrize("family", STACKS)
def test_a_stack_of_three_algorithms_adds_up_in_any_order(benches, tmp_path, family):
    bench = benches(family)
    stack = [
        (built(bench, family, name, seed), weight)
        for name, seed, weight in zip(STACKS[family], (1, 2, 3), (0.9, -0.4, 0.6), strict=True)
    ]
    with loras.merged(bench.pipe, stack):
        reference = bench.draw()
    files = [adapter(lora, tmp_path / f"{index}.safetensors", weight) for index, (lora, weight) in enumerate(stack)]
    for order in (files, files[::-1]):
        image, reports = bench.applied(order)
        assert_same(image, reference)
        assert [report.model for report in reports] == [file.model for file in order]
    bench.assert_untouched()


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "lokr, whole w2", "dora", "full", "ia3", "glora"])
def test_every_algorithm_is_cut_where_flux_fuses_its_layers(benches, tmp_path, name):
    """A file of the original layout: one change of q, k, v (and the MLP) together, cut by the real layers' rows."""
    bench = benches("flux")
    make, _ = ALGORITHMS[name]
    lora = Lora()
    for index, (stem, parts) in enumerate(
        {
            "double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
            "double_blocks_0_txt_attn_qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
            "single_blocks_0_linear1": [
                *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
                "single_transformer_blocks.0.proj_mlp",
            ],
        }.items()
    ):
        weights = [loras.weight_of(bench.pipe, "transformer", part) for part in parts]
        roles, delta, bias = make(torch.cat(weights), 5 + index)
        lora.tensors |= {f"lora_unet_{stem}.{role}": tensor for role, tensor in roles.items()}
        start = 0
        for part, weight in zip(parts, weights, strict=True):
            rows = slice(start, start := start + weight.shape[0])
            lora.deltas["transformer", part] = (delta[rows], None if bias is None else bias[rows])
    with loras.merged(bench.pipe, [(lora, 1.0)]):
        reference = bench.draw()
    image, (report,) = bench.applied([adapter(lora, tmp_path / "x.safetensors")])
    assert_same(image, reference)
    assert (report.matched, report.total) == (3, 3)


@pytest.mark.parametrize("name", ["oft", "dora by columns"])
def test_what_cannot_be_cut_exactly_is_refused_by_name(benches, tmp_path, name):
    bench = benches("flux")
    weight = torch.cat([loras.weight_of(bench.pipe, "transformer", f"transformer_blocks.0.attn.to_{x}") for x in "qkv"])
    roles, _, _ = ALGORITHMS[name][0](weight, 5)
    lora = Lora({f"lora_unet_double_blocks_0_img_attn_qkv.{role}": tensor for role, tensor in roles.items()})
    with pytest.raises(UnsupportedModel, match=r"OFT|DoRA") as failure:
        bench.applied([adapter(lora, tmp_path / "x.safetensors")])
    assert failure.value.field == "loras"
    bench.assert_untouched()


@pytest.mark.parametrize("role", ["modulation.diff", "diff_m"])
def test_a_table_of_the_model_takes_a_difference(benches, tmp_path, role):
    """Wan's LoRAs change parameters that belong to no layer."""
    bench = benches("flux")
    transformer = bench.pipe.transformer
    transformer.register_parameter("scale_shift_table", torch.nn.Parameter(torch.ones(1, 2, 8)))
    try:
        diff = loras.normal(1, 2, 8, seed=3)
        lora = Lora({f"diffusion_model.head.{role}": diff})
        with bench.cache.applied(host(bench.pipe, "tiny"), [adapter(lora, tmp_path / "x.safetensors", 0.5)]) as effect:
            assert torch.allclose(transformer.scale_shift_table.data, 1 + 0.5 * diff)
        assert torch.equal(transformer.scale_shift_table.data, torch.ones(1, 2, 8))
        assert effect.reports[0].matched == 1
    finally:
        del transformer.scale_shift_table


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_whole_layers_beside_a_lora_take_the_place_of_the_models_own(benches, tmp_path, family):
    """What peft saves of `modules_to_save`: linear layers, convolutions and norms, and biases trained alone."""
    bench = benches(family)
    lora = built(bench, family, "lora")
    component = "transformer" if family == "flux" else "unet"
    part = getattr(bench.pipe, component)
    whole = {"sd1": ("conv_out", "conv_norm_out", "time_embedding.linear_1"), "flux": ("x_embedder", "proj_out")}[
        family
    ]
    biased = {"sd1": "mid_block.resnets.0.conv1", "flux": "context_embedder"}[family]
    for index, path in enumerate((*whole, biased)):
        module, leaves = part.get_submodule(path), ("bias",) if path == biased else ("weight", "bias")
        own = {leaf: getattr(module, leaf).detach() for leaf in leaves}
        new = {
            leaf: value + 0.2 * value.std() * loras.normal(*value.shape, seed=3 + index) + 0.05
            for leaf, value in own.items()
        }
        stem = f"base_model.model.{path}" + (".base_layer" if path == biased else "")
        lora.tensors |= {f"{stem}.{leaf}": value for leaf, value in new.items()}
        deltas = {leaf: (new[leaf] - own[leaf]).double() for leaf in own}
        lora.deltas[component, path] = (deltas.get("weight"), deltas.get("bias"))
    with loras.merged(bench.pipe, [(lora, 0.6)]):
        reference = bench.draw()
    image, (report,) = bench.applied([adapter(lora, tmp_path / "x.safetensors", 0.6)])
    assert_same(image, reference)
    lora.deltas = {place: delta for place, delta in lora.deltas.items() if place[1] not in (*whole, biased)}
    with loras.merged(bench.pipe, [(lora, 0.6)]):
        assert_differs(reference, bench.draw())  # the layers are seen, not the LoRA beside them alone
    assert (report.algorithm, report.unmatched) == ("lora+whole", ())
    bench.assert_untouched()


def test_layers_of_a_sibling_variant_are_left_out_with_a_warning_and_any_other_loss_is_refused(benches, tmp_path):
    bench = benches("sd1")
    plain = built(bench, "sd1", "lora")
    pair = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2)}
    sibling = [f"lora_unet_blocks_{at}_cross_attn_{side}_img" for at in range(20) for side in "kv"]
    extra = Lora(plain.tensors | {f"{stem}.{role}": tensor for stem in sibling for role, tensor in pair.items()})
    files = [adapter(extra, tmp_path / "sibling.safetensors")]
    with bench.cache.applied(host(bench.pipe, "tiny"), files) as effect:
        (report,), (note,) = effect.reports, effect.notes
        image = bench.draw()
    expected, _ = bench.applied([adapter(plain, tmp_path / "plain.safetensors")])
    assert np.array_equal(image, expected)
    assert report.matched == report.total - len(sibling)
    assert report.unmatched[0] == "blocks_0_cross_attn_k_img (not in this variant)"
    assert "sibling.safetensors" in note
    assert f"{len(sibling)} of its {report.total}" in note
    assert "blocks_N_cross_attn_k_img, blocks_N_cross_attn_v_img" in note
    unknown = Lora(plain.tensors | {f"{stem}_x.{role}": tensor for stem in sibling for role, tensor in pair.items()})
    with pytest.raises(IncompatibleAdapter, match="no such module"):
        bench.applied([adapter(unknown, tmp_path / "unknown.safetensors")])


def test_a_whole_layer_of_another_size_is_refused(benches, tmp_path):
    bench = benches("sd1")
    lora = Lora({f"base_model.model.conv_out.{leaf}": torch.ones(5, 8) for leaf in ("weight",)})
    place = "base_model.model.time_embedding.linear_1"
    lora.tensors |= {f"{place}.lora_A.weight": torch.ones(2, 2), f"{place}.lora_B.weight": torch.ones(2, 2)}
    with pytest.raises(IncompatibleAdapter, match="conv_out"):
        bench.applied([adapter(lora, tmp_path / "x.safetensors")])
    bench.assert_untouched()


@pytest.mark.parametrize("break_", ["wrong rank", "half missing", "wrong size"])
def test_tensors_that_do_not_go_together_are_never_applied(benches, tmp_path, break_):
    bench = benches("sd1")
    lora = built(bench, "sd1", "lora")
    for key in list(lora.tensors):
        if break_ == "wrong rank" and key.endswith("up.weight"):
            lora.tensors[key] = lora.tensors[key][:, :2].contiguous()
        elif break_ == "half missing" and key.endswith("up.weight"):
            del lora.tensors[key]
        elif break_ == "wrong size" and key.endswith("down.weight"):
            lora.tensors[key] = lora.tensors[key][:, :-1].contiguous()
    with pytest.raises(IncompatibleAdapter) as failure:
        bench.applied([adapter(lora, tmp_path / "x.safetensors")])
    assert failure.value.details["matched"] == 0
    assert "attn2" in failure.value.message
    bench.assert_untouched()


@pytest.mark.parametrize(
    ("name", "role", "shape"),
    [
        ("loha", "hada_w2_a", (32, 3)),
        ("loha", "hada_w2_b", (4, 31)),
        ("lokr", "lokr_w2_b", (3, 8)),
        ("lora", "alpha", (2,)),
        ("lora", "lora_up.weight", (4,)),
        ("dora", "dora_scale", (5, 1)),
        ("oft", "oft_blocks", (2, 8, 8)),
        ("oft, constrained and rescaled", "rescale", (7, 1)),
        ("glora", "a2.weight", (3, 32)),
        ("ia3 on inputs", "weight", (9,)),
        ("lora", "lora_down.weight", ()),
    ],
)
def test_one_tensor_of_a_wrong_size_costs_its_module_and_fails_nothing_later(benches, tmp_path, name, role, shape):
    bench = benches("sd1")
    lora = built(bench, "sd1", name)
    first = next(key for key in lora.tensors if key.endswith(f".{role}"))
    lora.tensors[first] = torch.ones(shape)
    image, (report,) = bench.applied([adapter(lora, tmp_path / "x.safetensors")])
    assert report.matched == report.total - 1
    assert np.isfinite(image).all()
    bench.assert_untouched()


def test_sd3_kohya_is_applied_where_diffusers_itself_does_nothing(benches, tmp_path):
    bench = benches("sd3")
    lora = Lora()
    blocks = {"x_block": ("to_q", "to_k", "to_v"), "context_block": ("add_q_proj", "add_k_proj", "add_v_proj")}
    for block in range(2):
        for name, parts in blocks.items():
            places = [f"transformer_blocks.{block}.attn.{part}" for part in parts]
            weights = [loras.weight_of(bench.pipe, "transformer", place) for place in places]
            roles, delta, _ = loras.lora(torch.cat(weights), block)
            lora.tensors |= {f"lora_unet_joint_blocks_{block}_{name}_attn_qkv.{role}": t for role, t in roles.items()}
            for place, rows in zip(places, delta.chunk(3), strict=True):
                lora.deltas["transformer", place] = (rows, None)
    for block, name, half in ((0, "norm1_context", 0), (1, "norm1_context", 1)):
        # The last block only reads the text, and diffusers keeps its scale before its shift.
        place = f"transformer_blocks.{block}.{name}.linear"
        roles, delta, _ = loras.lora(loras.weight_of(bench.pipe, "transformer", place), 7 + block)
        stem = f"lora_unet_joint_blocks_{block}_context_block_adaLN_modulation_1"
        lora.tensors |= {f"{stem}.{role}": tensor for role, tensor in roles.items()}
        lora.deltas["transformer", place] = (torch.cat(delta.chunk(2)[::-1]) if half else delta, None)
    with loras.merged(bench.pipe, [(lora, 1.0)]):
        reference = bench.draw()
    image, (report,) = bench.applied([adapter(lora, tmp_path / "x.safetensors")])
    assert_same(image, reference)
    assert report.matched == report.total == 6


def test_half_precision_is_as_good_as_a_merge_in_half_precision(tmp_path):
    """Over several images: which way one image's last bits fall is the kernels' luck."""
    prompts = [f"a red apple {number}" for number in range(8)]
    bench = Bench("sd1", tmp_path)
    numbers = loras.low_rank(bench.pipe, paths(bench, SETS["unet", "narrow"]), seed=11)
    lora = Lora(loras.spelled(numbers, loras.kohya), deltas=loras.deltas_of(numbers))
    with loras.merged(bench.pipe, [(lora, 1.0)]):
        exact = [bench.draw(prompt) for prompt in prompts]
    file = adapter(lora, tmp_path / "x.safetensors")
    bench.pipe.to(torch.bfloat16)
    with loras.merged(bench.pipe, [(lora, 1.0)]):
        merged = [bench.draw(prompt) for prompt in prompts]
    images = [bench.applied([file], prompt)[0] for prompt in prompts]
    assert np.abs(np.array(images) - exact).mean() < 1.5 * np.abs(np.array(merged) - exact).mean()
