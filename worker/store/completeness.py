"""The files that a repository lacks, by its lists of files and of parts: known before anything is downloaded."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from worker.core.errors import CorruptFile, UnsupportedModel
from worker.store.selection import (
    CONFIG,
    ReadIndex,
    components,
    folders_of,
    is_index,
    is_weights,
    listed_shards,
    shard_count,
    split_of,
)

MAX_BESIDE_BYTES = 64 * 2**20  # the largest known vocabulary, of 262,144 words and their merges, has half of it
# Components of these classes have no weights of their own.
_WEIGHTLESS = re.compile(r"Tokenizer|Processor|Scheduler|Extractor|Guider")
# What a tokenizer's folder has beside its vocabulary.
_NO_VOCABULARY = frozenset(
    {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", CONFIG, "chat_template.json"}
)
_WITHOUT_VOCABULARY = ("ByT5Tokenizer",)  # its words are bytes


def check_complete(
    what: str,
    model_index: Mapping[str, object],
    names: Sequence[str],
    wants: Callable[[str], bool],
    read_index: ReadIndex,
    *,
    described_only: bool = False,
) -> None:
    """Raise CorruptFile naming the files that the chosen `names` of a pipeline's repository lack.

    With `described_only` a component may have its config and no weights at all.
    """
    missing: list[str] = []
    for component, cls in components(model_index):
        for folder in folders_of(component, cls, names) if wants(component) else []:
            inside = [name for name in names if name.startswith(f"{folder}/")]
            lacks = missing_files(f"{folder}/", cls, inside, read_index)
            missing += lacks if not described_only or any(map(is_weights, inside)) or _is_weightless(cls) else []
    refuse_missing(what, missing)


def refuse_bulky(what: str, sizes: Iterable[tuple[str, int | None]]) -> None:
    """Raise UnsupportedModel if a file beside the weights is larger than any vocabulary: it would be read whole."""
    for name, size in sizes:
        if size is not None and size > MAX_BESIDE_BYTES and not is_weights(name):
            raise UnsupportedModel(
                f"{name[-80:]} of {what} has {size:,} bytes; beside its weights no file of a model may have more than "
                f"{MAX_BESIDE_BYTES:,}.",
                field="model",
            )


def refuse_missing(what: str, missing: Sequence[str]) -> None:
    """Raise CorruptFile for these files of `what`, if there are any."""
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CorruptFile(
            f"{what} lacks {listed}, without which it cannot be loaded; complete it, or name another revision or "
            "model.",
            field="model",
            details={"missing": [*missing[:20]]},
            retryable=False,
        )


def missing_files(folder: str, cls: str, names: Sequence[str], read_index: ReadIndex) -> list[str]:
    """Return what a component lacks, by its class and the files of its `folder`: "unet/", or "" for a whole repository.

    One expected name stands for files that go by several.
    """
    if cls.endswith("Scheduler"):
        return _unless(f"{folder}scheduler_config.json", names)
    if "Tokenizer" in cls:
        return _missing_vocabulary(folder, cls, names)
    if _is_weightless(cls):
        return [] if names else [f"{folder}preprocessor_config.json"]
    weights = [name for name in names if is_weights(name)]
    if not weights:
        # A component with other files only is of a class without weights that nothing here knows.
        return [f"{folder}{_weights_name(names)}"] if f"{folder}{CONFIG}" in names or not names else []
    return [*_unless(f"{folder}{CONFIG}", names), *_missing_shards(folder, weights, names, read_index)]


def _is_weightless(cls: str) -> bool:
    return _WEIGHTLESS.search(cls) is not None


def _missing_vocabulary(folder: str, cls: str, names: Sequence[str]) -> list[str]:
    files = {name.removeprefix(folder) for name in names}
    if cls.startswith(_WITHOUT_VOCABULARY):
        return [] if files else [f"{folder}tokenizer_config.json"]
    if not files - _NO_VOCABULARY:
        return [f"{folder}tokenizer.json"]
    if "vocab.json" in files and not files & {"merges.txt", "tokenizer.json"} and cls.startswith("CLIP"):
        return [f"{folder}merges.txt"]
    return []


def _missing_shards(folder: str, weights: Sequence[str], names: Sequence[str], read_index: ReadIndex) -> list[str]:
    """Return the shards that are not there, and the index that says what lies in which."""
    count = shard_count(weights[0])
    if count is None:
        return []
    indexes = [name for name in names if is_index(name)]
    if not indexes:
        start = PurePosixPath(split_of(weights[0])[0]).name
        return [f"{folder}{start}{_container(weights[0])}.index.json"]
    expected = set(_shards(weights[0], count)) if len(weights) < count else set()
    for index in indexes:
        expected |= {f"{folder}{name}" for name in listed_shards(read_index(index))}
    return sorted(expected - set(weights))


def _shards(name: str, count: int) -> Iterator[str]:
    before, after = re.split(r"-\d{5}(?=-of-\d{5})", name, maxsplit=1)
    for number in range(1, count + 1):
        yield f"{before}-{number:05}{after}"


def _container(name: str) -> str:
    return ".bin" if name.lower().endswith(".bin") else ".safetensors"


def _unless(name: str, names: Sequence[str]) -> list[str]:
    return [] if name in names else [name]


def _weights_name(names: Sequence[str]) -> str:
    """Return what stands for a component's weights: the name in its index, if that is all that is there of them."""
    index = next((PurePosixPath(name).name for name in names if is_index(name)), None)
    return index.replace(".index.json", "") if index else "*.safetensors"
