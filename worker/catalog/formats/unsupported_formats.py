"""Names for files that are neither safetensors nor GGUF, by their first bytes, with the fix."""

import re

from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel, WorkerError

_CONVERT = "convert it to safetensors, for example with the Hub's convert space, and use that file"
_PROTOCOL_0 = re.compile(
    rb"\(?[dl(]*(?:[pi]\d+\n)?c[\w.]+\n[\w.]+\n"
)  # the oldest pickles have no mark, and name a global
_ARCHIVES = {
    b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gzip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar",
    b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2",
}  # fmt: skip
_IMAGES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF"}
_RIFFS = {b"WEBP": "a WebP image", b"AVI ": "a video", b"WAVE": "a sound"}
# (first bytes, name); a suffix alone is believed only where the format has no mark of its own
_OTHERS = (
    (b"%PDF", "a PDF document"), (b"MZ", "a Windows program"), (b"\x7fELF", "a Linux program"),
    (b"ftrt", "a TensorRT engine, which runs on one kind of GPU only"), (b"\x89HDF", "a Keras (HDF5) model"),
    (b"\x93NUMPY", "a NumPy array"), (b"ID3", "a sound"), (b"\x1aE\xdf\xa3", "a video"), (b"#!", "a program"),
)  # fmt: skip
_SUFFIXES = {
    ".onnx": "an ONNX model", ".mlmodel": "a Core ML model", ".mlpackage": "a Core ML model",
    ".msgpack": "a Flax model", ".engine": "a TensorRT engine, which runs on one kind of GPU only",
    ".tflite": "a TensorFlow Lite model", ".h5": "a Keras (HDF5) model", ".ggml": "a GGML file, older than GGUF",
}  # fmt: skip
_WORKFLOWS = (b'"class_type"', b'"last_node_id"', b'"last_link_id"', b'"nodes"')


def name_unsupported(prefix: bytes, name: str) -> WorkerError:
    """Return the error that names the file's real kind and the fix. `prefix` is best 512 bytes or more."""
    for recognise in (_answer, _container, _medium, _document):
        error = recognise(prefix, name)
        if error is not None:
            return error
    description = next((text for magic, text in _OTHERS if prefix.startswith(magic)), None) or _SUFFIXES.get(
        _suffix(name)
    )
    if description is None and prefix[:1] == b"\x08" and (b"pytorch" in prefix[:64] or b"onnx" in prefix[:256].lower()):
        description = "an ONNX model"  # protobuf: field 1 is the version, field 2 who wrote it
    if description is not None:
        return UnsupportedModel(f"{name} is {description}, which nothing here can run; use the safetensors version.")
    if _is_text(prefix):
        return UnsupportedModel(f"{name} is a text, not weights; name the weight file itself.")
    return UnsupportedModel(f"{name} is not a safetensors file; use a model in the safetensors format.")


def _answer(prefix: bytes, name: str) -> WorkerError | None:
    """Return the error for a source's answer in the file's place: a web page, or a git-LFS pointer."""
    if prefix.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return CorruptFile(
            f"{name} is an HTML page, not a model: the link needs a login or a token, or leads to a web page."
        )
    if prefix.startswith(b"version https://git-lfs"):
        return CorruptFile(f"{name} is a git-LFS pointer, not the weights; fetch the file itself (git lfs pull).")
    return None


def _container(prefix: bytes, name: str) -> WorkerError | None:
    """Return the error for a pickle or an archive."""
    if prefix.startswith(b"PK"):
        return _zip(prefix, name, _suffix(name))
    if _is_bare_pickle(prefix):
        return UnsafeFormat(f"{name} is a Python pickle, which can run code; {_CONVERT}.")
    kind = next((kind for magic, kind in _ARCHIVES.items() if prefix.startswith(magic)), None)
    if kind is None and prefix[257:262] == b"ustar":
        kind = "tar"
    return _archive(name, kind) if kind else None


def _medium(prefix: bytes, name: str) -> WorkerError | None:
    """Return the error for an image, a video or a sound."""
    for magic, format_name in _IMAGES.items():
        if prefix.startswith(magic):
            return UnsupportedModel(f"{name} is a {format_name} image, not a model.")
    if prefix.startswith(b"RIFF") and prefix[8:12] in _RIFFS:
        return UnsupportedModel(f"{name} is {_RIFFS[prefix[8:12]]}, not a model.")
    if prefix[4:8] == b"ftyp":
        return UnsupportedModel(f"{name} is a video, not a model.")
    return None


def _document(prefix: bytes, name: str) -> WorkerError | None:
    """Return the error for a JSON text, or for a file too short for any header."""
    if prefix.lstrip().startswith((b"{", b"[")):
        return _json(prefix, name)
    if len(prefix) < 9:
        return CorruptFile(f"{name} is truncated: a file of {len(prefix)} bytes holds no header; download it again.")
    return None


def _suffix(name: str) -> str:
    return "." + name.lower().rpartition(".")[2]


def is_pickle(prefix: bytes) -> bool:
    """True if the file is a torch pickle, zipped or bare, by its first bytes."""
    zipped = prefix.startswith(b"PK\x03\x04") and any(mark in prefix for mark in (b"data.pkl", b"/.format_version"))
    return zipped or _is_bare_pickle(prefix)


def _is_bare_pickle(prefix: bytes) -> bool:
    marked = prefix[:1] == b"\x80" and len(prefix) > 1 and prefix[1:2] in b"\x02\x03\x04\x05"
    return marked or _PROTOCOL_0.match(prefix) is not None


def _zip(prefix: bytes, name: str, suffix: str) -> WorkerError:
    if is_pickle(prefix) or b"/version" in prefix:
        return UnsafeFormat(f"{name} is a PyTorch pickle (.ckpt, .pt, .bin), which can run code; {_CONVERT}.")
    if suffix == ".dduf" or b"model_index.json" in prefix[:256]:
        return UnsupportedModel(
            f"{name} is a DDUF archive, which this version cannot load; use the diffusers repository it was made from."
        )
    if b".npy" in prefix[:256]:
        return UnsupportedModel(f"{name} is a NumPy archive, not a model; use the safetensors version.")
    if suffix in (".mlpackage", ".mlmodelc") or b".mlpackage" in prefix or b".mlmodelc" in prefix:
        return UnsupportedModel(f"{name} is a Core ML model, which runs on Apple devices; use the safetensors version.")
    return _archive(name, "zip")


def _archive(name: str, kind: str) -> UnsupportedModel:
    return UnsupportedModel(f"{name} is a {kind} archive; unpack it and use the safetensors file inside.")


def _json(prefix: bytes, name: str) -> WorkerError:
    if any(mark in prefix for mark in _WORKFLOWS):
        return UnsupportedModel(f"{name} is a ComfyUI workflow, not a model; name the models that it loads.")
    if b'"weight_map"' in prefix or name.endswith(".index.json"):
        return UnsupportedModel(
            f"{name} is the index of a sharded model, not its weights; name the repository instead."
        )
    return CorruptFile(f"{name} is a JSON text, not weights: the source answered with an error, or it is a config.")


def _is_text(prefix: bytes) -> bool:
    try:
        text = prefix[:256].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > 252  # a sign that is cut in the middle
    return all(sign.isprintable() or sign.isspace() for sign in text)
