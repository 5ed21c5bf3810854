"""A LoRA out of two models: what was put in comes out, and shares are those of the singular values."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import loras, single_files
from tests.engine.lora_bench import adapter
from tests.engine.test_lora_writing import KOHYA, adapter_of, numbers_of, paths
from tests.loras import Lora
from worker.core.device import LoadPlan
from worker.core.errors import UnsupportedModel
from worker.engine.adapters.extraction import _EXACT, _low_rank, _product, extract
from worker.engine.loader import load_pipeline
from worker.engine.lora_writing import extract_lora
from worker.engine.writing import write_model

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "flux": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
}


def plan_of(bench, family):
    return LoadPlan(bench.folder, PIPELINES[family], "float32", "cpu", "none", 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", PIPELINES)
def test_a_lora_that_was_baked_in_comes_out_again(benches, family, to, tmp_path):
    bench = benches(family)
    if family == "sd3":
        wanted_paths = paths(bench, {"transformer": r"^transformer_blocks.*attn\.to_[qv]$"})
        numbers = loras.low_rank(bench.pipe, wanted_paths, seed=3)
        first = adapter(Lora(loras.spelled(numbers, loras.dotted("transformer."))), tmp_path / "first.safetensors")
    else:
        numbers = numbers_of(bench, family, "wide", mixed=True)
        first = adapter(KOHYA[family](numbers), tmp_path / "first.safetensors")
    plan = plan_of(bench, family)
    write_model(plan, tmp_path / "tuned", "diffusers", "fp32", [first])
    plans = plan, replace(plan, root=tmp_path / "tuned")
    written, extracted = extract_lora(plans, 8, "fp32", (tmp_path / "x.safetensors", to), adapter_of)
    assert (extracted.kept, extracted.left_out) == (pytest.approx(1, abs=1e-4), 0)
    assert {place for place, _ in extracted.pieces.items()} == loras.deltas_of(numbers).keys()
    wanted, _ = bench.applied([first])
    got, (report,) = bench.applied([adapter_of(written.file)])
    assert report.matched == report.total
    assert np.abs(wanted - got).max() < np.abs(wanted - bench.plain).max() * 0.5
    assert np.sqrt(np.mean((wanted - got) ** 2)) < np.sqrt(np.mean((wanted - bench.plain) ** 2)) * 0.5


@pytest.mark.slow
def test_the_share_that_is_kept_is_that_of_the_largest_singular_values(benches):
    """Of random differences everywhere: by rank, and what no LoRA has a place for counts against it."""
    bench = benches("flux")
    base = bench.pipe
    tuned = load_pipeline(plan_of(bench, "flux"))
    squares, kept, beside = 0.0, {2: 0.0, 6: 0.0}, 0.0
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(tuned.transformer.named_parameters())):
            difference = loras.normal(*parameter.shape, seed=index, scale=0.01)
            own = parameter.clone()
            parameter += difference
            difference = (parameter - own).double()
            squares += float(difference.square().sum())
            if parameter.ndim == 2 and name.endswith(".weight"):
                values = np.linalg.svd(difference.numpy(), compute_uv=False) ** 2
                for rank in kept:
                    kept[rank] += float(values[:rank].sum())
            else:
                beside += float(difference.square().sum())
    for rank, share in kept.items():
        extracted = extract(base, tuned, rank, torch.float32)
        assert extracted.kept == pytest.approx(share / squares, rel=1e-3)
        assert extracted.left_out == pytest.approx(beside / squares, rel=1e-3)
        assert extracted.kept + extracted.left_out < 1
    rounded = extract(base, tuned, 6, torch.bfloat16)
    assert rounded.kept < kept[6] / squares
    assert rounded.kept == pytest.approx(kept[6] / squares, rel=1e-2)


def test_large_matrices_are_searched_the_same_way_each_time():
    rows, columns = _EXACT + 88, _EXACT + 8
    matrix = loras.normal(rows, 6, seed=1) @ loras.normal(6, columns, seed=2)
    matrix += loras.normal(rows, columns, seed=3, scale=0.01)
    state = torch.random.get_rng_state()
    one, other = (_low_rank(matrix, 6, torch.float32) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one.tensors[role], other.tensors[role]) for role in ("up", "down"))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False) ** 2
    missed = float((matrix.double() - _product(one)).square().sum())
    assert missed == pytest.approx(float(values[6:].sum()), rel=1e-2)
    shapes = {role: tuple(tensor.shape) for role, tensor in one.tensors.items()}
    assert shapes == {"up": (rows, 6), "down": (6, columns)}


@pytest.mark.slow
def test_models_of_other_shapes_and_equal_ones_are_refused_by_name(benches, tmp_path):
    bench = benches("sd1")
    plan = plan_of(bench, "sd1")
    folder = shutil.copytree(bench.folder, tmp_path / "wider")
    config = folder / "unet" / "config.json"
    text = config.read_text()
    assert '"in_channels": 4' in text
    config.write_text(text.replace('"in_channels": 4', '"in_channels": 9'))
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    kernel = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = torch.cat([kernel, kernel, kernel[:, :1]], dim=1)
    single_files.save(tensors, file)
    place = tmp_path / "x.safetensors", "kohya"
    with pytest.raises(UnsupportedModel, match=r"unet\.conv_in\.weight is .*, 4, 3, 3\) in --model and .*, 9, 3, 3\)"):
        extract_lora((plan, replace(plan, root=folder)), 4, "fp16", place, adapter_of)
    with pytest.raises(UnsupportedModel, match="No layer of the two models differs"):
        extract_lora((plan, plan), 4, "fp16", place, adapter_of)
    with pytest.raises(UnsupportedModel, match="The transformer of --model is missing and that of the tuned one Flux"):
        extract_lora((plan, plan_of(benches("flux"), "flux")), 4, "fp16", place, adapter_of)
    assert [path.name for path in tmp_path.iterdir()] == ["wider"]
