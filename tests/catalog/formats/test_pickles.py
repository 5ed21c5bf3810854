import collections
import io
import os
import pickle
import subprocess
import zipfile

import pytest
import torch

from tests.counting import Count
from worker.catalog.detector import detect_header
from worker.catalog.formats.headers import read_header
from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel
from worker.core.model import Kind


class _Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def gadgets(marker: str):
    touch = f"open({marker!r}, 'w').close()"
    yield "os.system", pickle.dumps(_Calls(os.system, f"touch {marker}"))
    yield "subprocess", pickle.dumps(_Calls(subprocess.check_call, ["touch", marker]))
    yield "exec", pickle.dumps(_Calls(exec, touch))
    yield "eval in a dict", pickle.dumps({"state_dict": {"w": _Calls(eval, touch)}})
    yield "protocol 0", pickle.dumps(_Calls(os.system, f"touch {marker}"), protocol=0)
    yield "protocol 5", pickle.dumps(_Calls(os.system, f"touch {marker}"), protocol=5)
    yield "as a key", pickle.dumps({"a": [_Calls(exec, touch), 1]}, protocol=2)
    yield "getattr chain", pickle.dumps(_Calls(getattr, _Calls(__import__, "os"), "system"))
    # INST, OBJ and BUILD by hand: older ways to the same end
    text = f"touch {marker}".encode()
    yield "inst", b"\x80\x02(S'" + text + b"'\nios\nsystem\n."
    yield "obj", b"\x80\x02(cos\nsystem\nS'" + text + b"'\no."
    yield "newobj", b"\x80\x02cos\nsystem\n(S'" + text + b"'\nt\x81."
    yield "build", b"\x80\x02c__main__\nx\n}S'__setstate__'\ncos\nsystem\nsbS'" + text + b"'\nb."
    yield "extension", b"\x80\x02\x82\x01."


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize("wrap", [lambda content: content, zipped], ids=["bare", "zip"])
@pytest.mark.parametrize("at", range(13))
def test_nothing_in_a_pickle_runs(at, wrap, tmp_path):
    marker = tmp_path / "ran"
    name, content = list(gadgets(str(marker)))[at]
    path = tmp_path / "model.ckpt"
    path.write_bytes(wrap(content))
    with pytest.raises(UnsafeFormat):
        read_header(path)
    with pytest.raises((UnsafeFormat, CorruptFile)):
        read_header(path, allow_pickles=True)
    assert not marker.exists(), name


def test_every_gadget_would_have_run(tmp_path):
    """The test above proves something only if an ordinary load does run them."""
    ran = 0
    for at, (_, content) in enumerate(list(gadgets(str(tmp_path / "x")))[:6]):
        marker = tmp_path / f"ran{at}"
        content = dict(gadgets(str(marker)))[_]
        pickle.loads(content)
        ran += marker.exists()
    assert ran == 6


def half(*shape):
    return torch.zeros(*shape, dtype=torch.float16)


SD1 = {
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "model.diffusion_model.output_blocks.0.0.in_layers.0.weight": (2560,),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_is_recognised(zip_format, tmp_path):
    path = tmp_path / "old.ckpt"
    saved = {"state_dict": {name: half(*shape) for name, shape in SD1.items()}, "global_step": 470_000, "epoch": 3}
    torch.save(saved, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UnsafeFormat, match="convert it to safetensors"):
        read_header(path)
    read = read_header(path, allow_pickles=True)
    assert read.container == "torch"
    assert dict(read.tensors) == {name: ("F16", shape) for name, shape in SD1.items()}
    assert read.metadata == {"global_step": "470000", "epoch": "3"}
    found = detect_header(read, path.name)
    assert (found.kind, found.architecture, found.format) == (Kind.CHECKPOINT, "sd1", "torch")


def test_embeddings_and_hypernetworks_are_recognised(tmp_path):
    path = tmp_path / "cat.pt"
    parameter = torch.nn.Parameter(torch.zeros(4, 768))
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": parameter}, "name": "cat"}, path)
    found = detect_header(read_header(path, allow_pickles=True))
    assert (found.kind, found.architecture) == (Kind.TEXTUAL_INVERSION, "sd1")
    layer = collections.OrderedDict({"linear.0.weight": torch.zeros(640, 320), "linear.0.bias": torch.zeros(640)})
    torch.save({320: [layer, layer], 640: [layer, layer], "name": "style", "step": 9}, path)
    found = detect_header(read_header(path, allow_pickles=True))
    assert (found.kind, found.architecture) == (Kind.HYPERNETWORK, "sd1")


def test_shared_storages_and_other_dtypes_are_read(tmp_path):
    path = tmp_path / "w.bin"
    base = torch.zeros(4, 4, dtype=torch.bfloat16)
    torch.save({"a": base, "b": base[:2], "c": torch.zeros(2, dtype=torch.int64)}, path)
    read = read_header(path, allow_pickles=True)
    assert dict(read.tensors) == {"a": ("BF16", (4, 4)), "b": ("BF16", (2, 4)), "c": ("I64", (2,))}


@pytest.mark.parametrize("keep", [100, 2000])
def test_a_truncated_pickle_is_corrupt(keep, tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save({f"layer.{at}.weight": half(8, 8) for at in range(40)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match="download it again"):
        read_header(path, allow_pickles=True)


def test_a_pickle_that_grows_is_bounded(tmp_path):
    deep: list[object] = [1]
    for _ in range(40):
        deep = [deep, deep, deep, deep]
    path = tmp_path / "laughs.pt"
    path.write_bytes(pickle.dumps({"a": deep}))
    with Count() as count, pytest.raises(UnsafeFormat, match="without tensors"):
        read_header(path, allow_pickles=True)
    assert count.calls < 20_000
    path.write_bytes(b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".")  # a buffer of a terabyte
    with pytest.raises(CorruptFile):
        read_header(path, allow_pickles=True)
    path.write_bytes(b"\x80\x02]r\xff\xff\xff\x7f.")  # a memo of two billion places
    with pytest.raises((UnsafeFormat, UnsupportedModel)):
        read_header(path, allow_pickles=True)


def test_a_checkpoint_is_read_in_a_few_calls_for_each_tensor(tmp_path):
    path = tmp_path / "big.ckpt"
    torch.save({"state_dict": {f"a.{at}.weight": half(1) for at in range(1100)}}, path)
    with Count() as count:
        assert len(read_header(path, allow_pickles=True).tensors) == 1100
    assert count.calls < 400 * 1100
