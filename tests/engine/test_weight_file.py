"""Weights read into memory: as their own library gives them, each aligned, and refused in its words."""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models import model_loading_utils
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.builders import tiny_sd1
from worker.core.device import LoadPlan
from worker.core.errors import WorkerError
from worker.engine import ahead, weight_file
from worker.engine.ahead import read_ahead, weight_files
from worker.engine.loader import load_pipeline
from worker.engine.weight_file import Wanted, mapped_tensors, read_tensors

MIXED = {
    "odd": torch.arange(3, dtype=torch.uint8),
    "half": torch.randn(5, 7).half(),
    "brain": torch.randn(3, 3, 2).bfloat16(),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "eight": torch.randn(9).to(torch.float8_e4m3fn),
    "model_ema.half": torch.ones(4),
}


def test_tensors_that_are_read_are_those_that_are_mapped_and_aligned(tmp_path):
    save_file(MIXED, tmp_path / "a.safetensors", {"format": "pt"})
    read, mapped = read_tensors(tmp_path / "a.safetensors", mapped=False), load_file(tmp_path / "a.safetensors")
    assert read.keys() == mapped.keys() - {"model_ema.half"}
    for name, tensor in read.items():
        assert (tensor.dtype, tensor.shape) == (mapped[name].dtype, mapped[name].shape)
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), mapped[name].reshape(-1).view(torch.uint8))
        assert tensor.data_ptr() % 64 == 0


def test_thousands_of_tensors_are_views_of_one_mapping(tmp_path):
    path = tmp_path / "a.safetensors"
    for tensors in (
        MIXED,
        {"odd": torch.arange(3, dtype=torch.uint8), "real": torch.ones(2)},
        {"none": torch.empty(0)},
    ):
        save_file(tensors, path)
        mapped, usual = mapped_tensors(path), load_file(path)
        assert mapped.keys() == usual.keys()
        for name, tensor in mapped.items():
            assert (tensor.dtype, tensor.shape, tensor.stride()) == (
                usual[name].dtype, usual[name].shape, usual[name].stride(),
            )  # fmt: skip
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), usual[name].reshape(-1).view(torch.uint8))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header + b" ").to_bytes(8, "little") + header + b" " + bytes(torch.ones(2).numpy()))
    assert mapped_tensors(path)["a"].equal(torch.ones(2)), "also where its numbers lie at any byte"
    path.write_bytes(b"{}")
    with pytest.raises(SafetensorError):
        mapped_tensors(path)


@pytest.mark.parametrize("cut", [3, 40, -1])
def test_a_truncated_file_is_refused_in_its_librarys_words(tmp_path, cut):
    save_file(MIXED, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:cut])
    with pytest.raises(SafetensorError):
        read_tensors(tmp_path / "b.safetensors", mapped=False)


class Reads:
    """The bytes of files that were read, in order: `pieces` of each are its beginnings and lengths."""

    def __init__(self, monkeypatch):
        self.pieces = []
        preadv = os.preadv

        def counted(file, views, offset):
            self.pieces.append((str(Path(f"/proc/self/fd/{file}").readlink()), offset, sum(map(len, views))))
            return preadv(file, views, offset)

        monkeypatch.setattr(weight_file, "os", SimpleNamespace(**vars(os) | {"preadv": counted}))

    def bytes_of(self, path):
        return sum(length for name, _, length in self.pieces if name == str(path))


@pytest.mark.parametrize(
    ("stored", "dtype"), [*itertools.permutations((torch.float16, torch.bfloat16, torch.float32), 2)]
)
def test_tensors_are_read_in_the_dtype_that_is_wanted_and_each_byte_once(tmp_path, monkeypatch, stored, dtype):
    path, reads = tmp_path / "a.safetensors", Reads(monkeypatch)
    monkeypatch.setattr(weight_file, "_PIECE_BYTES", 50_000)
    large = torch.randn(3, 41, 407).to(stored)
    save_file(
        {"large": large, "norm.weight": large + 1, "small": large[0, 0].clone(), "numbers": torch.arange(3)}, path
    )
    read = read_tensors(path, Wanted(dtype, frozenset({"norm"})), mapped=True)
    assert torch.equal(read["large"], large.to(dtype))
    assert {name: tensor.dtype for name, tensor in read.items()} == {
        "large": dtype, "norm.weight": stored, "small": stored, "numbers": torch.int64,
    }  # fmt: skip
    assert reads.bytes_of(path) == sum(tensor.nbytes for tensor in load_file(path).values())


@pytest.mark.parametrize("packed", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_scales_of_packed_weights_stay_as_they_are(tmp_path, packed):
    weights = {"a.weight": torch.ones(4, 4).to(packed), "a.scale": torch.ones(300, 300)}
    save_file(weights, tmp_path / "a.safetensors")
    for mapped in (True, False):
        read = read_tensors(tmp_path / "a.safetensors", Wanted(torch.bfloat16), mapped=mapped)
        assert {name: tensor.dtype for name, tensor in read.items()} == {"a.weight": packed, "a.scale": torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_repository_in_another_dtype_is_read_once_and_is_what_diffusers_makes_of_it(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(weight_file, "_LEAST_CAST_BYTES", 64)
    root = tiny_sd1(tmp_path / "model")
    plan = LoadPlan(root, "StableDiffusionPipeline", dtype, "cpu", "none", 1, 1)
    usual = {name: part.state_dict() for name, part in _parts(from_diffusers(root, dtype)).items()}
    reads = Reads(monkeypatch)
    pipe = load_pipeline(plan)
    for name, part in _parts(pipe).items():
        held = part.state_dict()
        assert held.keys() == usual[name].keys()
        assert all(held[key].dtype is tensor.dtype and held[key].equal(tensor) for key, tensor in usual[name].items())
    for name in ("unet", "vae"):
        (path,) = weight_file_of(root / name)
        assert reads.bytes_of(path) == sum(tensor.nbytes for tensor in load_file(path).values())
    assert model_loading_utils.safetensors is safetensors, "diffusers reads by itself again"


def test_a_repository_in_the_dtype_of_its_files_is_mapped(tmp_path, monkeypatch):
    root, reads = tiny_sd1(tmp_path / "model"), Reads(monkeypatch)
    load_pipeline(LoadPlan(root, "StableDiffusionPipeline", "float32", "cpu", "none", 1, 1))
    assert reads.pieces == []


def test_all_pages_are_there_before_weights_are_looked_at(tmp_path, monkeypatch):
    root, done = tiny_sd1(tmp_path / "model"), []
    read_pages = ahead._read_pages
    monkeypatch.setattr(ahead, "_read_pages", lambda path, given_up: (read_pages(path, given_up), done.append(path)))
    plan = LoadPlan(root, "StableDiffusionPipeline", "float32", "cpu", "none", 1, 1)
    with read_ahead(plan):
        pass
    assert done == [*weight_files(plan)]


def test_a_file_that_cannot_be_read_ahead_fails_the_load_and_nothing_waits(tmp_path, monkeypatch):
    root = tiny_sd1(tmp_path / "model")
    monkeypatch.setattr(weight_file, "_LEAST_CAST_BYTES", 64)

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(ahead, "read_tensors", fail)
    with pytest.raises(WorkerError):
        load_pipeline(LoadPlan(root, "StableDiffusionPipeline", "float16", "cpu", "none", 1, 1))


def from_diffusers(root, dtype):
    return StableDiffusionPipeline.from_pretrained(root, dtype=getattr(torch, dtype), safety_checker=None)


def _parts(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def weight_file_of(folder):
    return folder.glob("*.safetensors")


def test_the_files_that_a_plan_loads_are_read_ahead_and_no_others(tmp_path):
    root = tmp_path / "model"
    parts = ("unet/model", "unet/model.fp16", "vae/model", "safety_checker/model", "onnx/model")
    for name in (*(f"{part}.safetensors" for part in parts), "vae/ema.bin"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 100)
    listed = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "safety_checker": "AutoencoderKL"}
    (root / "model_index.json").write_text(json.dumps({name: ["diffusers", cls] for name, cls in listed.items()}))
    plan = LoadPlan(root, "StableDiffusionPipeline", "float16", "cuda", "none", 1, 1, variant="fp16")
    assert [str(path.relative_to(root)) for path in weight_files(plan)] == [
        "unet/model.fp16.safetensors",
        "vae/model.safetensors",
    ]
    with read_ahead(plan):
        pass
    (tmp_path / "reduced/unet").mkdir(parents=True)
    reduced = replace(plan, reduced=tmp_path / "reduced")  # whose smaller weights are loaded instead
    assert [path.parent.name for path in weight_files(reduced)] == ["vae"]
