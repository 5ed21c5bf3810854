"""Weights read into memory: as their own library gives them, each aligned, and refused in its words."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from worker.core.device import LoadPlan
from worker.engine.ahead import read_ahead, weight_files
from worker.engine.weight_file import read_tensors

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


@pytest.mark.parametrize("cut", [3, 40, -1])
def test_a_truncated_file_is_refused_in_its_librarys_words(tmp_path, cut):
    save_file(MIXED, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:cut])
    with pytest.raises(SafetensorError):
        read_tensors(tmp_path / "b.safetensors", mapped=False)


def test_the_files_that_a_plan_loads_are_read_ahead_and_no_others(tmp_path):
    root = tmp_path / "model"
    for name in ("unet/model.safetensors", "unet/model.fp16.safetensors", "vae/model.safetensors", "vae/ema.bin"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 100)
    plan = LoadPlan(root, "StableDiffusionPipeline", "float16", "cuda", "none", 1, 1, variant="fp16")
    assert [str(path.relative_to(root)) for path in weight_files(plan)] == [
        "unet/model.fp16.safetensors",
        "vae/model.safetensors",
    ]
    with read_ahead(plan):
        pass
