"""What is learnt of weight files from their headers, and how often a file is looked at for it."""

import os
from dataclasses import replace

import pytest

from tests.catalog.corpus import header_of, index, sparse_file, stored
from worker.catalog.detector import detect_header
from worker.catalog.formats import headers
from worker.catalog.formats.headers import read_header
from worker.core.model import ModelFiles
from worker.service.local import weights
from worker.service.local.weights import count_reducible, examine_lora, measure, weigh

LONG_AGO_S = 1_000_000_000


@pytest.fixture
def parsed(monkeypatch):
    """The names of the files whose headers were parsed."""
    found, parse = [], headers.parse_header

    def counted(prefix, size, name):
        found.append(name)
        return parse(prefix, size, name)

    monkeypatch.setattr(headers, "parse_header", counted)
    return found


def old(path):
    os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    return path


def test_one_reading_of_a_checkpoint_s_header_tells_its_kind_its_size_and_its_layers(tmp_path, parsed):
    path = old(sparse_file(tmp_path / "model.safetensors", stored("sdxl")))
    assert detect_header(read_header(path), path.name).architecture == "sdxl"
    files = ModelFiles(path, path.stat().st_size)
    counts, packed = measure(files, None)
    assert 3.4e9 < counts["model"] < 3.6e9
    assert packed == {}
    assert count_reducible(replace(files, parameters=counts))["model"].matrices > 2.2e9
    assert parsed == ["model.safetensors"]


def test_a_model_is_weighed_once_until_one_of_its_files_changes(tmp_path, monkeypatch):
    (tmp_path / "unet").mkdir()
    path = old(sparse_file(tmp_path / "unet/model.safetensors", stored("sdxl")))
    counted = []

    def counting(files, missing):
        counted.append(files.root)
        return measure(files, missing)

    monkeypatch.setattr(weights, "measure", counting)
    files = ModelFiles(tmp_path, 1)
    first = weigh(files, None)
    first.parameters.clear()  # whoever has the answer may do with it what he wants
    again = weigh(files, None)
    assert again.parameters["unet"] > 3.4e9
    assert again.reducible["unet"].matrices > 2.2e9
    assert len(counted) == 1
    os.utime(path)
    assert weigh(files, None) == again
    assert len(counted) == 2


def test_each_file_of_a_repository_is_read_once(tmp_path, parsed):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text("{}")
    whole = stored("flux1-diffusers")
    names = [*whole.tensors]
    for number, part in enumerate((names[:500], names[500:]), 1):
        shard = replace(whole, tensors={name: whole.tensors[name] for name in part})
        sparse_file(tmp_path / f"transformer/model-0000{number}-of-00002.safetensors", shard)
    files = ModelFiles(tmp_path, 1)
    counts, _ = measure(files, None)
    assert 11.8e9 < counts["transformer"] < 12e9
    assert count_reducible(replace(files, parameters=counts))["transformer"].matrices > 8e9
    assert len(parsed) == len({*parsed}) == 2


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    """It may be written once more with the same size at the same time, as far as its file system tells."""
    path = tmp_path / "a.safetensors"
    for name in ("one", "two"):
        head, size = header_of(index({name: (4,)}))
        path.write_bytes(head + b"\0" * (size - len(head)))
        assert [*read_header(path).tensors] == [name]


def test_a_file_in_another_s_place_is_read(tmp_path):
    for name in ("one", "two"):
        sparse_file(tmp_path / "new", index({name: (4,)}))
        old(tmp_path / "new").replace(tmp_path / "a.safetensors")
        assert [*read_header(tmp_path / "a.safetensors").tensors] == [name]


def test_a_lora_whose_digest_is_known_is_not_read_as_a_whole(tmp_path, monkeypatch):
    path = sparse_file(tmp_path / "style.safetensors", stored("lora-sdxl-kohya"))
    read = []
    monkeypatch.setattr(weights, "_sha256", lambda file: read.append(file) or "b" * 64)
    assert examine_lora(path, "a" * 64).sha256 == "a" * 64
    assert read == []
    assert examine_lora(path).sha256 == "b" * 64
    assert read == [path]
