"""The memory that a load takes beside the model: never the model once more, whatever the file's dtype and layout."""

import gc
import re
import sys
import threading
from pathlib import Path

import diffusers
import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests import single_files
from tests.builders import tiny_flux, tiny_sd1, tiny_sd3, tiny_sdxl
from tests.holding import Held
from tests.waiting import LIMIT_S
from worker.core.device import LoadPlan
from worker.core.errors import WorkerError
from worker.engine import single_file, weight_file
from worker.engine.loader import FORMATS, load_pipeline
from worker.engine.skeletons import Skeletons, filled
from worker.engine.weight_file import Wanted, read_tensors

FAMILIES = {
    "StableDiffusionPipeline": tiny_sd1,
    "StableDiffusionXLPipeline": tiny_sdxl,
    "StableDiffusion3Pipeline": tiny_sd3,
    "FluxPipeline": tiny_flux,
}


def held_by(pipe):
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def plan_of(path, config, family, dtype):
    return LoadPlan(path, family, dtype, "cpu", "none", 1, 1, format="safetensors", config=config)


def test_what_is_counted_is_what_tensors_hold():
    with Held() as held:
        first = torch.zeros(1000)
        view = first[10:]
        second = first.half()
        assert held.now == 6000
        del first
        assert held.now == 6000, "the view has it"
        del view, second
    assert (held.now, held.most) == (0, 6000)


@pytest.fixture
def held(monkeypatch):
    counted = Held()
    # Blocks of the reading threads are of no size that grows with a model.
    monkeypatch.setattr(weight_file, "_read", counted.everywhere(weight_file._read))
    monkeypatch.setattr(weight_file, "_LEAST_CAST_BYTES", 1)
    return counted


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, "bfloat16") for family in FAMILIES), ("StableDiffusionPipeline", "float32")]
)
def test_a_single_file_needs_no_memory_for_its_weights_twice(tmp_path, held, family, dtype):
    folder = FAMILIES[family](tmp_path / "model")
    path = single_files.single_file(folder, tmp_path / "a.safetensors")
    for part in folder.rglob("*.safetensors"):
        part.unlink()  # all that is loaded is in the file
    with held:
        pipe = load_pipeline(plan_of(path, folder, family, dtype))
    assert 0.9 <= held.most / held_by(pipe) <= 1.2, "what a part has fused is copied by its converter at most"


def test_a_repository_needs_no_memory_for_its_weights_twice(tmp_path, held):
    folder = tiny_sd1(tmp_path / "model")
    with held:
        pipe = load_pipeline(LoadPlan(folder, "StableDiffusionPipeline", "bfloat16", "cpu", "none", 1, 1))
    assert 0.9 <= held.most / held_by(pipe) <= 1.05


def test_reading_ends_once_it_is_given_up(tmp_path, monkeypatch):
    path = single_files.save({"a": torch.ones(100_000)}, tmp_path / "a.safetensors")
    pieces: list[object] = []
    monkeypatch.setattr(weight_file._Piece, "read", lambda *piece: pieces.append(piece))
    given_up = threading.Event()
    read_tensors(path, Wanted(torch.bfloat16), mapped=True, given_up=given_up)
    assert len(pieces) == 1
    given_up.set()
    read_tensors(path, Wanted(torch.bfloat16), mapped=True, given_up=given_up)
    assert len(pieces) == 1


def test_what_goes_wrong_while_a_file_is_read_gives_its_reading_up(tmp_path, monkeypatch):
    folder = tiny_sd1(tmp_path / "model")
    path = single_files.single_file(folder, tmp_path / "a.safetensors")
    seen: list[threading.Event] = []

    def read(path, *, given_up, **options):
        seen.append(given_up)
        assert given_up.wait(LIMIT_S)
        return {}

    monkeypatch.setattr(single_file, "read_tensors", lambda path, wanted, **options: read(path, **options))
    (folder / "tokenizer/tokenizer_config.json").write_text("{")
    with pytest.raises(WorkerError):
        load_pipeline(plan_of(path, folder, "StableDiffusionPipeline", "float32"))
    assert [given_up.is_set() for given_up in seen] == [True]


SD3 = {"sample_size": 8, "pos_embed_max_size": 8, "num_attention_heads": 1, "caption_projection_dim": 64}
FLUX = {"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32, "num_single_layers": 1}
Z_IMAGE = {"n_refiner_layers": 1, "dim": 384, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 32}
SMALL = [
    (diffusers.SD3Transformer2DModel, SD3 | {"num_layers": 1, "joint_attention_dim": 32}),
    (diffusers.FluxTransformer2DModel, FLUX | {"num_layers": 1, "num_attention_heads": 1}),
    (diffusers.QwenImageTransformer2DModel, {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 32}),
    (diffusers.WanTransformer3DModel, {"num_layers": 1, "num_attention_heads": 1, "ffn_dim": 64, "text_dim": 32}),
    (diffusers.ZImageTransformer2DModel, Z_IMAGE | {"n_layers": 1}),
]


@pytest.mark.parametrize(("cls", "settings"), SMALL, ids=lambda item: getattr(item, "__name__", ""))
def test_a_skeleton_that_is_filled_is_the_whole_model(cls, settings):
    whole = cls.from_config(settings)
    skeletons = Skeletons()
    assert skeletons.shapes(cls, settings) == {name: tuple(each.shape) for name, each in whole.state_dict().items()}
    model = skeletons.take(cls, settings)
    assert all(parameter.is_meta for parameter in model.parameters())
    filled(model, dict(whole.state_dict()), torch.float32)
    for (name, module), other in zip(whole.named_modules(), model.modules(), strict=True):
        assert all(a.equal(b) for a, b in zip(tensors_of(module), tensors_of(other), strict=True)), name
    assert skeletons.take(cls, settings) is not model


def tensors_of(item):
    """A module's own tensors, wherever it keeps them."""
    for leaf in tree_leaves({name: value for name, value in vars(item).items() if name != "_modules"}):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif type(leaf).__module__.startswith("diffusers.models") and hasattr(leaf, "__dict__"):
            yield from tensors_of(leaf)


def test_large_weights_lie_in_memory_for_which_huge_pages_were_asked(tmp_path):
    smaps = Path("/proc/self/smaps")
    if not smaps.is_file() or not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("this system has no huge pages")
    path = single_files.save({"a": torch.ones(2**20), "b": torch.ones(2**20)}, tmp_path / "a.safetensors")
    for tensor in read_tensors(path, mapped=False).values():
        inside, flags = False, ""
        for line in smaps.read_text().splitlines():
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(match[1], 16) <= tensor.data_ptr() + 2**20 < int(match[2], 16)
            elif inside and line.startswith("VmFlags:"):
                flags = line
        assert " hg" in flags


def test_a_load_searches_for_no_garbage_and_gives_way_to_its_readers(tmp_path, monkeypatch):
    folder, seen = tiny_sd1(tmp_path / "model"), []

    def fail(plan):
        seen.append((gc.isenabled(), sys.getswitchinterval()))
        raise OSError

    monkeypatch.setitem(FORMATS, "diffusers", fail)
    before = gc.isenabled(), sys.getswitchinterval()
    with pytest.raises(WorkerError):
        load_pipeline(LoadPlan(folder, "StableDiffusionPipeline", "float32", "cpu", "none", 1, 1))
    assert seen == [(False, pytest.approx(1e-4))]
    assert (gc.isenabled(), sys.getswitchinterval()) == before
