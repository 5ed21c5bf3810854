"""New words for prompts, for the length of one job: textual inversions, alone or inside a LoRA file.

diffusers' `load_textual_inversion` grows the text encoder's embedding and changes the tokenizer in place. Undoing that
leaves traces in both. Its words must not be in the vocabulary, and match within longer ones. Here the tokenizer is a
copy that first spells each word, whole and in any case, as one new token for each of its vectors. So every pipeline
reads it in every prompt, and hooks on the encoder answer for the new tokens.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, normalizers
from torch import Tensor, nn

from worker.core.adapter import Adapter, AdapterFiles, EmbeddingSpec
from worker.core.embedding import Rows, embedding_parts, own_words
from worker.core.errors import CorruptFile, IncompatibleAdapter
from worker.core.job import PROMPT_PARAMETERS, Job
from worker.engine.adapters.host import Effect, Host, reports_of

Embedding = AdapterFiles[Adapter[EmbeddingSpec]]

# Names of each encoder's vectors in files. `*` is for any encoder that is as wide.
_ENCODERS: Mapping[str, Sequence[str]] = {
    "*": ("text_encoder", "text_encoder_2", "text_encoder_3"),
    "clip_l": ("text_encoder",),
    "clip_g": ("text_encoder_2",),
    "t5": ("text_encoder_2", "text_encoder_3"),
}


@dataclass(frozen=True, slots=True)
class Word:
    """A word to teach: its vectors (count, width) by part, and the file that brings it."""

    text: str
    parts: Mapping[str, Tensor]
    model: str


@contextmanager
def taught(host: Host, embeddings: Sequence[Embedding]) -> Iterator[Effect]:
    """Teach the pipeline's encoders the word of each of `embeddings`, and yield reports with their tokens."""
    words = [word for adapter in embeddings for word in _words(adapter)]
    with embedded(host.pipe, words, "embeddings"):
        reports = zip(reports_of(embeddings), embeddings, strict=True)
        yield Effect([replace(report, tokens=_tokens(adapter)) for report, adapter in reports])


def unnamed(embeddings: Sequence[Embedding], job: Job) -> tuple[str, ...]:
    """Return a sentence for each of `embeddings` that no prompt of `job` names."""
    texts = [text for text in (job.prompt, job.negative_prompt, *_numbered(job)) if text]
    return tuple(
        f"{adapter.model} was loaded, but no prompt names {' or '.join(_tokens(adapter))[:200]}."
        for adapter in embeddings
        if not any(re.search(_pattern(token), text) for token in _tokens(adapter) for text in texts)
    )


@contextmanager
def embedded(pipe: Any, words: Sequence[Word], field: str) -> Iterator[None]:
    """Teach the pipeline's encoders `words`, which came in the request's `field`."""
    by_encoder: dict[str, dict[str, Tensor]] = {}
    for word in words:
        for part, vectors in word.parts.items():
            rows = vectors.reshape(-1, vectors.shape[-1])
            encoders = _encoders(pipe, part, rows.shape[1], word.model, field)
            # One word in two files is that of two encoders, the first file's of the first.
            free = [name for name in encoders if word.text.lower() not in map(str.lower, by_encoder.get(name, ()))]
            if not free:
                raise _taken(word.text, field)
            by_encoder.setdefault(free[0], {})[word.text] = rows
    with ExitStack() as stack:
        for encoder, rows_by_word in by_encoder.items():
            stack.enter_context(_taught(pipe, encoder, rows_by_word, field))
        yield


def _encoders(pipe: Any, part: str, width: int, model: str, field: str) -> list[str]:
    """Return the encoders that can read a part's vectors. Raises IncompatibleAdapter where none has that width."""
    widths = {}
    for name in _ENCODERS.get(part, ()):
        layer = _table(getattr(pipe, name, None))
        is_t5 = layer is not None and getattr(pipe, name).config.model_type in ("t5", "umt5")
        if layer is not None and (part == "*" or is_t5 is (part == "t5")):
            widths[name] = layer.embedding_dim
    matches = [name for name, size in widths.items() if size == width]
    if matches:
        return matches
    if not widths:
        encoder_name = "a text encoder" if part == "*" else part
        raise IncompatibleAdapter(
            f"{field}: {model} brings words for {encoder_name}, which this model lacks.", field=field
        )
    sizes = " or ".join(str(size) for size in dict.fromkeys(widths.values()))
    raise IncompatibleAdapter(
        f"{field}: {model} brings words of {width} numbers, and this model's have {sizes}; "
        "use one that was trained for this model's family.",
        field=field,
    )


@contextmanager
def _taught(pipe: Any, encoder: str, words: Mapping[str, Tensor], field: str) -> Iterator[None]:
    name = encoder.replace("text_encoder", "tokenizer")
    module, original = getattr(pipe, encoder), getattr(pipe, name)
    present: frozenset[str] = getattr(original, "taught_words", frozenset())
    for word in words:
        if word.lower() in present:
            raise _taken(word, field)
    tokenizer = copy.deepcopy(original)
    tokenizer.taught_words = present | {word.lower() for word in words}
    first_id = len(tokenizer)
    table = torch.cat(list(words.values()))
    names = [f"<|taught-{first_id + index}|>" for index in range(len(table))]
    remaining = iter(names)
    spelling_of = {word: "".join(next(remaining) for _ in rows) for word, rows in words.items()}
    backend = tokenizer.backend_tokenizer
    # The longest first: one word may begin with another.
    spellings = [
        normalizers.Replace(Regex(_pattern(word)), spelling_of[word])
        for word in sorted(spelling_of, key=len, reverse=True)
    ]
    backend.normalizer = normalizers.Sequence([*spellings, *([backend.normalizer] if backend.normalizer else [])])
    # Normalized tokens are searched after the spelling.
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in names])
    with _answered(module, table, first_id):
        setattr(pipe, name, tokenizer)
        try:
            yield
        finally:
            setattr(pipe, name, original)


@contextmanager
def _answered(encoder: nn.Module, table: Tensor, first: int) -> Iterator[None]:
    """Answer ids from `first` on with rows of `table`; the encoder itself never sees them.

    CLIP's older configs take the largest id for the end of the prompt, where its pooled vector is read.
    """
    rows_of_ids: list[Tensor] = []

    def hide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = args[0] if args else kwargs["input_ids"]
        new = (ids >= first) & (ids < first + len(table))
        rows_of_ids[:] = [torch.where(new, ids - first, -1)]
        plain = ids.masked_fill(new, 0)
        return ((plain, *args[1:]), kwargs) if args else (args, kwargs | {"input_ids": plain})

    def answer(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = rows_of_ids[0].to(output.device)
        output = output.clone()
        output[rows >= 0] = table.to(output)[rows[rows >= 0]]
        return output

    handles = [encoder.register_forward_pre_hook(hide, with_kwargs=True)]
    handles.append(_table(encoder).register_forward_hook(answer))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _table(encoder: Any) -> Any:
    """Return the layer that turns ids into vectors; None for an object without one, or for no text encoder."""
    layer = encoder.get_input_embeddings() if hasattr(encoder, "get_input_embeddings") else None
    return layer if isinstance(layer, nn.Embedding) else None


def _pattern(word: str) -> str:
    """Return an expression for `word` by itself, in any case: for Python and the tokenizers alike."""
    escaped = "".join(char if char.isalnum() or char in "_ " else f"\\{char}" for char in word)
    return rf"(?i)(?<!\w){escaped}(?!\w)"


def _tokens(adapter: Embedding) -> tuple[str, ...]:
    """Return the words of a file: the one it is called by, or its own where it names several."""
    token = adapter.adapter.spec.token
    return (token,) if token else tuple(own_words(_shapes(_tensors(adapter))))


def _taken(word: str, field: str) -> IncompatibleAdapter:
    return IncompatibleAdapter(
        f"{field}: the word {word[:64]} is brought by two files of this job; use one of them, or give an embedding "
        "another token.",
        field=field,
    )


def _numbered(job: Job) -> list[str]:
    values = [value for name, value in job.params.items() if name in PROMPT_PARAMETERS or "prompt_" in name]
    return [value for value in values if isinstance(value, str)]


def _words(adapter: Embedding) -> Iterator[Word]:
    tensors, token = _tensors(adapter), adapter.adapter.spec.token
    named: Mapping[str, Mapping[str, Rows]] = own_words(_shapes(tensors))
    parts = embedding_parts(_shapes(tensors))
    if token:  # all vectors in a row
        named = {token: {part: Rows(name) for part, name in parts.items()}}
    for word, rows_by_part in named.items():
        vectors = {
            part: tensors[rows.tensor] if rows.row is None else tensors[rows.tensor][rows.row]
            for part, rows in rows_by_part.items()
        }
        yield Word(word, vectors, adapter.model)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _tensors(adapter: Embedding) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(adapter.files.root)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(
            f"embeddings: {adapter.model} cannot be read ({type(error).__name__}); fetch it again.",
            field="embeddings",
        ) from None
    return tensors
