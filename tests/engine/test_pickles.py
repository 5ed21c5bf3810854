"""Pickles: refused unless the operator allows them, then converted in a child; what they hold is never run."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import pytest
import torch

from tests import builders, single_files
from tests.asking import perform
from worker.app.build import build_worker
from worker.core.errors import CorruptFile, UnsafeFormat, WorkerError
from worker.engine.pickles import PickleConverter

CALLS = [
    ("os", "system", "touch {}"),
    ("posix", "system", "touch {}"),
    ("subprocess", "getoutput", "touch {}"),
    ("subprocess", "check_output", ["touch", "{}"]),
    ("subprocess", "Popen", ["touch", "{}"]),
    ("builtins", "eval", "open('{}', 'w')"),
    ("builtins", "exec", "open('{}', 'w')"),
    ("builtins", "open", "{}"),
    ("pathlib", "Path.touch", "{}"),
    ("os", "mkdir", "{}"),
    ("os", "makedirs", "{}"),
    ("pty", "spawn", ["touch", "{}"]),
    ("timeit", "timeit", "open('{}', 'w')"),
    ("cProfile", "run", "open('{}', 'w')"),
    ("profile", "run", "open('{}', 'w')"),
    ("pdb", "run", "open('{}', 'w')"),
    ("code", "InteractiveInterpreter", "{}"),
    ("runpy", "run_path", "{}"),
    ("torch", "load", "{}"),
    ("torch.hub", "load", "{}"),
    ("numpy.testing._private.utils", "runstring", "open('{}', 'w')"),
    ("logging.config", "listen", "{}"),
    ("shutil", "copyfileobj", "{}"),
    ("__main__", "Callback", "{}"),
]


class Gadget:
    """Pickled by hand: a call of `module.name` with one argument, in protocol 0, that needs no such module here."""

    def __init__(self, module, name, argument):
        self.code = f"c{module}\n{name}\n".encode()
        self.argument = argument

    def stream(self):
        return self.code + b"(" + pickle.dumps(self.argument, 0).rstrip(b".") + b"tR."


def zipped(stream):
    """As torch writes it: an archive with data.pkl first."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", stream)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def tarred(stream):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(stream)
            archive.addfile(info, io.BytesIO(stream))
    return buffer.getvalue()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}.{call[1]}")
@pytest.mark.parametrize("wrap", [zipped, bytes], ids=["zip", "plain"])
@pytest.mark.quick_rows(16)
def test_a_pickle_that_names_code_is_unsafe_and_never_run(tmp_path, call, wrap):
    marker = tmp_path / "ran"
    module, name, argument = call
    fill = [text.format(marker) for text in argument] if isinstance(argument, list) else argument.format(marker)
    path = tmp_path / "model.ckpt"
    path.write_bytes(wrap(Gadget(module, name, fill).stream()))
    with pytest.raises(UnsafeFormat, match="pickle that holds more than tensors"):
        PickleConverter(tmp_path / "converted").convert(path)
    assert not marker.exists()
    assert not any((tmp_path / "converted").iterdir())


def test_code_that_hides_its_name_is_stopped_by_torch_itself(tmp_path):
    marker = tmp_path / "ran"
    # The name comes from the memo, past whoever reads the texts in a row.
    stream = (
        pickle.PROTO + b"\x04" + pickle.SHORT_BINUNICODE + b"\x05posix" + pickle.MEMOIZE + pickle.POP
        + pickle.SHORT_BINUNICODE + b"\x06system" + pickle.MEMOIZE + pickle.POP
        + pickle.BINGET + b"\x00" + pickle.BINGET + b"\x01"
        + pickle.SHORT_BINUNICODE + b"\x05torch" + pickle.POP + pickle.SHORT_BINUNICODE + b"\x04Size" + pickle.POP
        + pickle.STACK_GLOBAL + pickle.SHORT_BINUNICODE + bytes([len(f"touch {marker}")]) + f"touch {marker}".encode()
        + pickle.TUPLE1 + pickle.REDUCE + pickle.STOP
    )  # fmt: skip
    path = tmp_path / "model.ckpt"
    path.write_bytes(zipped(stream))
    with pytest.raises((UnsafeFormat, CorruptFile)):
        PickleConverter(tmp_path / "converted").convert(path)
    assert not marker.exists()


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", tarred(b"garbage"), zipped(b"\x80\x04.")])
def test_what_is_no_weights_is_damaged(tmp_path, content):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(CorruptFile):
        PickleConverter(tmp_path / "converted").convert(path)
    assert not any((tmp_path / "converted").iterdir())


def test_plain_tensors_are_converted_once_and_exactly(tmp_path):
    weights = {"a.weight": torch.randn(3, 4), "b": torch.arange(5)}
    weights["shared"] = weights["a.weight"]
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "model.ckpt")
    converter = PickleConverter(tmp_path / "converted")
    first = converter.convert(tmp_path / "model.ckpt")
    written = first.stat().st_mtime_ns
    assert converter.convert(tmp_path / "model.ckpt") == first
    assert first.stat().st_mtime_ns == written
    found = single_files.load_file(first)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_the_child_sees_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen = {}

    def run(command, *, env, **options):
        seen.update(env)
        return real(command, env=env, **options)

    import subprocess

    real = subprocess.run
    monkeypatch.setattr("worker.engine.pickles.subprocess.run", run)
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
    PickleConverter(tmp_path / "converted").convert(tmp_path / "m.pt")
    assert "hf_secret" not in seen.values()
    assert set(seen) <= {"PATH", "OMP_NUM_THREADS"}


@pytest.mark.slow
def test_a_folder_of_pickles_becomes_one_without_them_and_stays_as_it_was(tmp_path):
    folder = builders.tiny_sd1(tmp_path / "model")
    torch.save(single_files.weights(folder / "text_encoder"), folder / "text_encoder/pytorch_model.bin")
    (folder / "text_encoder/model.safetensors").unlink()
    before = sorted(folder.rglob("*"))
    made = PickleConverter(tmp_path / "converted").convert(folder)
    assert sorted(folder.rglob("*")) == before
    assert not [*made.rglob("*.bin")]
    assert (made / "text_encoder/model.safetensors").is_file()
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(made, use_safetensors=True, local_files_only=True)
    assert pipe.unet.config.in_channels == 4
    assert PickleConverter(tmp_path / "converted").convert(folder) == made


def test_a_folder_without_pickles_is_itself(tmp_path):
    folder = builders.tiny_sd1(tmp_path / "model")
    assert PickleConverter(tmp_path / "converted").convert(folder) == folder
    assert not (tmp_path / "converted").exists()


async def test_a_pickle_is_refused_where_the_operator_did_not_allow_it(settings, zoo, tmp_path):
    registry = json.loads((zoo / "models.yaml").read_text())
    registry["models"]["old"] = {"source": "file:models/old.ckpt", "architecture": "sd1", "config": "models/sd1"}
    path = zoo / "pickles.yaml"
    path.write_text(json.dumps(registry))
    marker = tmp_path / "ran"
    (zoo / "models/old.ckpt").write_bytes(zipped(Gadget("os", "system", f"touch {marker}").stream()))
    for allow in (False, True):
        worker = build_worker(settings.model_copy(update={"models_yaml": path, "allow_pickles": allow}))
        with pytest.raises(WorkerError) as failure:
            await perform(worker, {"model": "old", "prompt": "x"}, f"job-{allow}", lambda progress: None)
        assert failure.value.code in {"unsafe_format", "unsupported_model"}
        assert worker.engine.resident_models == []
    assert not marker.exists()


def test_the_variable_that_would_unlock_every_pickle_is_taken_away(settings, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    build_worker(settings)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


async def test_a_lora_in_a_pickle_draws_what_its_safetensors_draws_where_the_operator_allows_it(
    settings, zoo, tmp_path
):
    tensors = single_files.load_file(zoo / "models/lora.safetensors")
    folder = settings.volume / "own"
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "lora.pt")
    job = {"prompt": "x", "seed": 1, "loras": [f"file:{folder}/lora.pt"]}
    with pytest.raises(UnsafeFormat) as refused:
        await perform(build_worker(settings), job, "a", lambda progress: None)
    assert refused.value.field == "loras"
    allowed = build_worker(settings.model_copy(update={"allow_pickles": True}))
    answer = await perform(allowed, job, "b", lambda progress: None)
    plain = {**job, "loras": [f"file:{zoo}/models/lora.safetensors"]}
    assert answer["image"] == (await perform(allowed, plain, "c", lambda progress: None))["image"]
