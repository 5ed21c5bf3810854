"""LoRAs written in another spelling: the same file again on the way back, the same image, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests import loras
from tests.engine.lora_bench import adapter, host
from tests.engine.test_lora_dialects import FLUX, SETS, UNET, paths
from tests.engine.test_writing import RECIPE_OF, image_of
from tests.images import assert_differs
from tests.loras import Lora
from worker.core.adapter import Adapter, LoraFiles
from worker.core.device import LoadPlan
from worker.core.errors import IncompatibleAdapter, LoadFailed, UnsupportedModel
from worker.core.lora_spellings import SPELLINGS
from worker.core.model import LoraSpec, ModelFiles
from worker.engine import lora_writing
from worker.engine.adapters.lora import LoraCache
from worker.engine.adapters.pieces import read_pieces
from worker.engine.lora_writing import respell, write_pieces
from worker.service.local.weights import examine_lora

PIPELINES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}


def adapter_of(path):
    """A file as a job has it."""
    file = examine_lora(path)
    return LoraFiles(
        Adapter(LoraSpec(model=path.name, weight=0.8)),
        ModelFiles(path, path.stat().st_size),
        file.detection,
        file.sha256,
        keys=file.keys,
        scaling=file.scaling,
    )


def written(pipe, file, target, to):
    return write_pieces(pipe, read_pieces(pipe, file), target, SPELLINGS[to], adapter_of)


def same_file(one, other):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].flatten().float(), second[name].flatten().float()) for name in first)


def numbers_of(bench, family, holds="wide", mixed=True):
    wanted = SETS["flux" if family == "flux" else "unet", holds]
    return loras.low_rank(bench.pipe, paths(bench, wanted), seed=11, mixed=mixed)


def _one_encoder(numbers):
    """sd-scripts counts the text encoders of models that have two."""
    lora = UNET["kohya"].write(numbers)
    return Lora({name.replace("lora_te1_", "lora_te_"): tensor for name, tensor in lora.tensors.items()})


KOHYA = {"sd1": _one_encoder, "sdxl": UNET["kohya, original block names"].write, "flux": FLUX["kohya"].write}
DIFFUSERS = {"sd1": UNET["diffusers"].write, "sdxl": UNET["diffusers"].write, "flux": FLUX["diffusers"].write}
COMFY = {"sd1": UNET["comfy"].write, "sdxl": UNET["comfy"].write, "flux": FLUX["comfy"].write}


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("family", PIPELINES)
def test_kohyas_spelling_and_diffusers_are_each_others(benches, family, tmp_path):
    """Against files written by another hand: every key and every number, both ways, alphas too."""
    bench = benches(family)
    numbers = numbers_of(bench, family)
    theirs = adapter(KOHYA[family](numbers), tmp_path / "kohya.safetensors")
    plain = adapter(DIFFUSERS[family](numbers), tmp_path / "diffusers.safetensors")
    to_diffusers = written(bench.pipe, theirs, tmp_path / "a.safetensors", "diffusers")
    to_kohya = written(bench.pipe, plain, tmp_path / "b.safetensors", "kohya")
    assert to_diffusers.exact
    assert to_kohya.exact
    same_file(to_diffusers.file, plain.files.root)
    same_file(to_kohya.file, theirs.files.root)
    back = written(bench.pipe, adapter_of(to_diffusers.file), tmp_path / "c.safetensors", "kohya")
    same_file(back.file, theirs.files.root)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("to", SPELLINGS)
@pytest.mark.parametrize("family", PIPELINES)
def test_every_spelling_comes_back_to_the_bit_and_draws_the_same(benches, family, to, tmp_path):
    bench = benches(family)
    numbers = numbers_of(bench, family, "narrow")
    first = adapter(KOHYA[family](numbers), tmp_path / "first.safetensors", 0.8)
    there = written(bench.pipe, first, tmp_path / ("x" if to == "peft" else "x.safetensors"), to)
    back = written(bench.pipe, adapter_of(there.file), tmp_path / "back.safetensors", "kohya")
    assert there.exact
    assert back.exact
    same_file(back.file, first.files.root)
    before, _ = bench.applied([first])
    after, (report,) = bench.applied([adapter_of(there.file)])
    assert np.array_equal(before, after)
    assert_differs(before, bench.plain)
    assert report.matched == report.total


@pytest.mark.slow
def test_what_a_comfy_file_is_called_is_what_another_hand_calls_it(benches, tmp_path):
    for family, write in COMFY.items():
        bench = benches(family)
        numbers = numbers_of(bench, family, "narrow")
        theirs = adapter(write(numbers), tmp_path / f"{family}.safetensors")
        first = adapter(DIFFUSERS[family](numbers), tmp_path / f"{family}-first.safetensors")
        same_file(written(bench.pipe, first, tmp_path / f"{family}-x.safetensors", "comfy").file, theirs.files.root)


def test_parts_of_a_fused_layer_that_differ_keep_ranks_of_their_own(benches, tmp_path):
    """q has rank 4, v rank 6 and another scale, k nothing: one layer in kohya's spelling, and those two again."""
    bench = benches("flux")
    stem = "transformer.transformer_blocks.0.attn"
    tensors = {
        f"{stem}.to_q.lora_A.weight": loras.normal(4, 32, seed=1),
        f"{stem}.to_q.lora_B.weight": loras.normal(32, 4, seed=2),
        f"{stem}.to_q.alpha": torch.tensor(2.0),
        f"{stem}.to_v.lora_A.weight": loras.normal(6, 32, seed=3),
        f"{stem}.to_v.lora_B.weight": loras.normal(32, 6, seed=4),
        f"{stem}.to_v.alpha": torch.tensor(3.0),
    }
    first = adapter(Lora(tensors), tmp_path / "first.safetensors")
    there = written(bench.pipe, first, tmp_path / "x.safetensors", "kohya")
    assert there.exact
    held = load_file(there.file)
    assert {name: tuple(tensor.shape) for name, tensor in held.items()} == {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (10, 32),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (96, 10),
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": (),
    }
    pieces = read_pieces(bench.pipe, adapter_of(there.file))
    assert {path: (piece.rank, piece.alpha) for (_, path), piece in pieces.items()} == {
        "transformer_blocks.0.attn.to_q": (4, 2.0),
        "transformer_blocks.0.attn.to_v": (6, 3.0),
    }
    tensors[f"{stem}.to_v.alpha"] = torch.tensor(4.5)  # one alpha cannot say two scales: up holds the other
    other = adapter(Lora(tensors), tmp_path / "other.safetensors", 0.8)
    told = written(bench.pipe, other, tmp_path / "y.safetensors", "kohya")
    assert not told.exact
    before, after = bench.applied([other])[0], bench.applied([adapter_of(told.file)])[0]
    assert np.abs(before - after).max() < 1e-5


def test_alphas_and_ranks_of_modules_with_like_names_stay_apart(benches, tmp_path):
    """FLUX has a proj_out and a single_transformer_blocks.0.proj_out: a pattern for the one is none for the other."""
    bench = benches("flux")
    sizes = {"proj_out": (32, 64), "single_transformer_blocks.0.proj_out": (None, None)}
    tensors = {}
    for index, path in enumerate(sizes):
        rows, columns = bench.pipe.transformer.get_submodule(path).weight.shape
        tensors[f"transformer.{path}.lora_A.weight"] = loras.normal(4 + 2 * index, columns, seed=index)
        tensors[f"transformer.{path}.lora_B.weight"] = loras.normal(rows, 4 + 2 * index, seed=index + 9)
        tensors[f"transformer.{path}.alpha"] = torch.tensor(1.0 + 4 * index)
    first = adapter(Lora(tensors), tmp_path / "first.safetensors")
    for to in ("diffusers", "peft"):
        there = written(bench.pipe, first, tmp_path / ("x" if to == "peft" else "x.safetensors"), to)
        assert there.exact
        config = examine_lora(there.file).scaling.settings
        assert len(config) == 1


@pytest.mark.slow
def test_metadata_and_words_of_its_own_go_along(benches, tmp_path):
    bench = benches("sd1")
    lora = UNET["kohya"].write(numbers_of(bench, "sd1"))
    lora.metadata = {"modelspec.trigger_phrase": "sks", "sshash_model_hash": "0" * 64, "ss_tag": "x"}
    lora.tensors["bundle_emb.sks.string_to_param.*"] = loras.normal(1, 32, seed=5)
    first = adapter(lora, tmp_path / "first.safetensors")
    plan = LoadPlan(bench.folder, PIPELINES["sd1"], "float32", "cpu", "none", 0, 0)
    respelled = respell(plan, first, tmp_path / "x.safetensors", "comfy", adapter_of)
    with safe_open(respelled.file, "pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.trigger_phrase": "sks", "ss_tag": "x"}
    assert "bundle_emb.sks.string_to_param.*" in load_file(respelled.file)
    with pytest.raises(UnsupportedModel, match="words of its own"):
        respell(plan, first, tmp_path / "y.safetensors", "diffusers", adapter_of)
    assert not (tmp_path / "y.safetensors").exists()


def made(bench, make, name, paths_):
    part = "transformer" if "transformer" in bench.pipe.components else "unet"
    return loras.build(bench.pipe, part, paths_, make, name, seed=3)


@pytest.mark.slow
def test_other_algorithms_keep_their_tensors_where_the_spelling_has_them(benches, tmp_path):
    bench = benches("sdxl")
    wanted = paths(bench, {"unet": r"attn1\.to_[qv]$"})["unet"]
    for name, make in {"loha": loras.loha, "lokr": loras.lokr, "full": loras.full, "oft": loras.oft}.items():
        first = adapter(made(bench, make, loras.kohya_ldm, wanted), tmp_path / f"{name}.safetensors", 0.8)
        there = written(bench.pipe, first, tmp_path / f"{name}-comfy.safetensors", "comfy")
        back = written(bench.pipe, adapter_of(there.file), tmp_path / f"{name}-back.safetensors", "kohya")
        same_file(back.file, first.files.root)
        with pytest.raises(UnsupportedModel, match=r"for which diffusers's spelling has no place; take --to kohya"):
            written(bench.pipe, first, tmp_path / f"{name}-x.safetensors", "diffusers")
        assert not (tmp_path / f"{name}-x.safetensors").exists()


@pytest.mark.slow
def test_doras_magnitudes_go_both_ways(benches, tmp_path):
    bench = benches("sdxl")

    def dora(weight, seed):
        return loras.decomposed(loras.lora(weight, seed), weight, seed + 1)

    wanted = paths(bench, {"unet": r"attn1\.to_[qv]$"})["unet"]
    first = adapter(made(bench, dora, loras.kohya_ldm, wanted), tmp_path / "first.safetensors", 0.8)
    there = written(bench.pipe, first, tmp_path / "x.safetensors", "diffusers")
    back = written(bench.pipe, adapter_of(there.file), tmp_path / "back.safetensors", "kohya")
    same_file(back.file, first.files.root)
    assert np.array_equal(bench.applied([first])[0], bench.applied([adapter_of(there.file)])[0])
    by_columns = made(bench, lambda w, seed: loras.decomposed(loras.lora(w, seed), w, seed, by_rows=False),
                      loras.kohya_ldm, wanted)  # fmt: skip
    other = adapter(by_columns, tmp_path / "columns.safetensors")
    with pytest.raises(UnsupportedModel, match="a magnitude by columns"):
        written(bench.pipe, other, tmp_path / "y.safetensors", "diffusers")


def test_what_cannot_be_said_in_a_spelling_is_refused_by_name(benches, tmp_path):
    bench = benches("flux")
    numbers = numbers_of(bench, "flux")
    both = adapter(DIFFUSERS["flux"](numbers), tmp_path / "both.safetensors")
    with pytest.raises(UnsupportedModel, match="The file changes text_encoder too, and peft keeps one model a file"):
        written(bench.pipe, both, tmp_path / "peft", "peft")
    stem = "transformer_blocks.0.attn.to_"
    apart = made(bench, loras.lokr, loras.dotted("transformer."), [f"{stem}{side}" for side in "qkv"])
    with pytest.raises(UnsupportedModel, match=r"double_blocks\.0\.img_attn\.qkv is one layer in kohya's spelling"):
        written(bench.pipe, adapter(apart, tmp_path / "lokr.safetensors"), tmp_path / "x.safetensors", "kohya")
    fused = {f"lora_unet_double_blocks_0_img_attn_qkv.{role}": loras.normal(*shape, seed=1) for role, shape in
             {"lokr_w1": (4, 4), "lokr_w2": (24, 8)}.items()}  # fmt: skip
    with pytest.raises(UnsupportedModel, match="has a lokr over 3 layers, which cannot be taken apart exactly"):
        read_pieces(bench.pipe, adapter(Lora(fused), tmp_path / "fused.safetensors"))
    other = adapter(KOHYA["sd1"](numbers_of(benches("sd1"), "sd1")), tmp_path / "sd1.safetensors")
    with pytest.raises(IncompatibleAdapter, match="layers that this model has not"):
        read_pieces(bench.pipe, other)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
    assert not (tmp_path / "x.safetensors").exists()


def test_places_that_are_none_are_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "there.safetensors").touch()
    for name, to, sentence in (
        ("there.safetensors", "kohya", "is there already"),
        ("x.safetensors", "peft", "name a folder"),
        ("x", "comfy", "must end with .safetensors"),
    ):
        with pytest.raises(UnsupportedModel, match=sentence):
            respell(None, None, tmp_path / name, to, adapter_of)
    assert (tmp_path / "there.safetensors").stat().st_size == 0


def test_what_a_text_encoder_or_a_convolution_has_and_a_spelling_has_not_is_refused_by_name(benches, tmp_path):
    bench = benches("sdxl")
    conv = paths(bench, {"unet": r"resnets\.\d+\.conv1$"})["unet"][:1]

    def dora(weight, seed):
        return loras.decomposed(loras.lora(weight, seed), weight, seed + 1)

    first = adapter(made(bench, dora, loras.kohya_ldm, conv), tmp_path / "conv.safetensors")
    with pytest.raises(UnsupportedModel, match="has a magnitude by columns or of a convolution, for which diffusers"):
        written(bench.pipe, first, tmp_path / "x.safetensors", "diffusers")
    torch.manual_seed(0)
    pipe = RECIPE_OF["QwenImagePipeline"].build()
    (path, layer), *_ = [
        (path, m)
        for path, m in pipe.text_encoder.named_modules()
        if isinstance(m, torch.nn.Linear) and "layers" in path
    ]
    tensors = {
        f"text_encoder.{path}.lora_A.weight": loras.normal(2, layer.in_features, seed=1),
        f"text_encoder.{path}.lora_B.weight": loras.normal(layer.out_features, 2, seed=2),
    }
    llm = adapter(Lora(tensors), tmp_path / "llm.safetensors")
    with pytest.raises(UnsupportedModel, match=r"The file changes text_encoder, a .*, which has no name in comfy's"):
        written(pipe, llm, tmp_path / "x.safetensors", "comfy")
    vera = {"unet.x.vera_lambda_b": loras.normal(4, seed=1), "unet.x.lora_A.weight": loras.normal(4, 4, seed=2)}
    with pytest.raises(UnsupportedModel, match="holds VeRA, which is not read here"):
        read_pieces(bench.pipe, adapter(Lora(vera), tmp_path / "vera.safetensors"))


def test_a_folder_of_pefts_that_did_not_come_back_is_not_kept_nor_is_what_came_meanwhile_lost(
    benches, tmp_path, monkeypatch
):
    bench, real = benches("flux"), lora_writing.save_file
    first = adapter(DIFFUSERS["flux"](numbers_of(bench, "flux", "narrow")), tmp_path / "first.safetensors")

    def damaged(tensors, path, metadata):
        real({name: tensor * 1.01 for name, tensor in tensors.items()}, path, metadata)

    monkeypatch.setattr(lora_writing, "save_file", damaged)
    with pytest.raises(LoadFailed, match="did not come back as it was"):
        written(bench.pipe, first, tmp_path / "peft", "peft")
    target = tmp_path / "x.safetensors"

    def slow(tensors, path, metadata):
        real(tensors, path, metadata)
        target.write_text("somebody else's")

    monkeypatch.setattr(lora_writing, "save_file", slow)
    with pytest.raises(UnsupportedModel, match="is there already"):
        written(bench.pipe, first, target, "diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.safetensors", "x.safetensors"]
    assert target.read_text() == "somebody else's"


@pytest.mark.parametrize("fault", ["lost", "changed", "more"])
def test_what_does_not_come_back_leaves_nothing(benches, fault, tmp_path, monkeypatch):
    bench, real = benches("sd1"), lora_writing.save_file

    def damaged(tensors, path, metadata):
        name = next(name for name in tensors if name.endswith("lora_up.weight"))
        stem = name.removesuffix("lora_up.weight")
        rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(stem)}
        odd = {"lost": rest, "changed": tensors | {name: tensors[name] * 1.01}, "more": tensors | further}
        real(odd[fault], path, metadata)

    first = adapter(UNET["diffusers"].write(numbers_of(bench, "sd1")), tmp_path / "first.safetensors")
    width = bench.pipe.unet.time_embedding.linear_2.in_features
    further = {
        "lora_unet_time_embedding_linear_2.lora_down.weight": loras.normal(2, width, seed=1),
        "lora_unet_time_embedding_linear_2.lora_up.weight": loras.normal(width, 2, seed=2),
    }
    monkeypatch.setattr(lora_writing, "save_file", damaged)
    with pytest.raises(
        LoadFailed, match=r"did not come back as it was|time_embedding\.linear_2'\) was not in the file"
    ):
        written(bench.pipe, first, tmp_path / "x.safetensors", "kohya")
    assert [path.name for path in tmp_path.iterdir()] == ["first.safetensors"]


KNOWN = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
    *("Flux2Pipeline", "ChromaPipeline", "PixArtSigmaPipeline", "Lumina2Pipeline", "QwenImagePipeline"),
    *("ZImagePipeline", "WanPipeline", "LTXPipeline", "MochiPipeline", "HunyuanVideoPipeline", "Krea2Pipeline"),
)
UNKNOWN = ("SanaPipeline", "AuraFlowPipeline", "CogView4Pipeline", "OvisImagePipeline")


def every_layer(pipe, path):
    """A LoRA in diffusers' spelling on every linear layer of the denoiser, of three ranks and four alphas."""
    name = next(name for name in ("unet", "transformer") if name in pipe.components)
    tensors = {}
    layers = [(key, m) for key, m in getattr(pipe, name).named_modules() if isinstance(m, torch.nn.Linear)]
    for index, (key, layer) in enumerate(layers):
        rank = 2 + index % 3
        down = loras.normal(rank, layer.in_features, seed=index, scale=layer.in_features**-0.5)
        up = loras.normal(layer.out_features, rank, seed=index + 5_000, scale=0.05)
        alpha = torch.tensor(float(rank))
        tensors |= {
            f"{name}.{key}.lora_A.weight": down,
            f"{name}.{key}.lora_B.weight": up,
            f"{name}.{key}.alpha": alpha,
        }
    return adapter(Lora(tensors), path, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", (*KNOWN, *UNKNOWN))
def test_a_lora_of_every_layer_comes_back_in_every_family(pipeline, tmp_path):
    torch.manual_seed(0)
    pipe = RECIPE_OF[pipeline].build()
    first = every_layer(pipe, tmp_path / "first.safetensors")
    cache, images = LoraCache(1), {}
    for to in SPELLINGS:
        if pipeline in UNKNOWN and SPELLINGS[to].original:
            with pytest.raises(UnsupportedModel, match="other programs have for the layers of a"):
                written(pipe, first, tmp_path / f"{to}.safetensors", to)
            continue
        there = written(pipe, first, tmp_path / (to if to == "peft" else f"{to}.safetensors"), to)
        back = written(pipe, adapter_of(there.file), tmp_path / f"{to}-back.safetensors", "diffusers")
        assert (there.exact, back.exact) == (True, True)
        once = written(pipe, first, tmp_path / f"{to}-once.safetensors", "diffusers")
        same_file(back.file, once.file)
        with cache.applied(host(pipe, "tiny"), [adapter_of(there.file)]):
            images[to] = image_of(pipe, pipeline)
    with cache.applied(host(pipe, "tiny"), [first]):
        before = image_of(pipe, pipeline)
    assert all(np.array_equal(before, image) for image in images.values())
    assert not np.array_equal(before, image_of(pipe, pipeline))


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_own_loader_draws_the_same_from_what_was_written(benches, family, tmp_path, monkeypatch):
    """An outside opinion on keys, ranks and alphas. Of kohya's it has none: it drops alphas that differ."""
    bench = benches(family)
    numbers = numbers_of(bench, family, "narrow", mixed=True)
    first = adapter(KOHYA[family](numbers), tmp_path / "first.safetensors", 1.0)
    written(bench.pipe, first, tmp_path / "x.safetensors", "diffusers")
    image, _ = bench.applied([first])
    own = type(bench.pipe).from_pretrained(bench.folder)
    own.set_progress_bar_config(disable=True)
    own.load_lora_weights(tmp_path, weight_name="x.safetensors")
    monkeypatch.setattr(bench, "pipe", own)
    assert np.abs(bench.draw() - image).max() < 1e-4
