"""Textual inversions inside a LoRA file: words that the prompt may use for the length of one job.

diffusers' `load_textual_inversion` grows the text encoder's embedding and changes the tokenizer in place, and taking
that back leaves traces in both. Here the tokenizer is a copy, and a hook on the embedding answers for the new words.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worker.core.errors import IncompatibleAdapter

# What a bundle calls the vectors of each encoder. `*` is that of a model with one.
_ENCODERS = {"*": "text_encoder", "clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@contextmanager
def embedded(pipe: Any, embeddings: Mapping[str, Mapping[str, Tensor]], lora: str) -> Iterator[None]:
    """Teach the pipeline's encoders the words of `embeddings` (word -> part -> vectors of its encoder)."""
    with ExitStack() as stack:
        for encoder in dict.fromkeys(_ENCODERS.values()):
            vectors: dict[str, Tensor] = {}
            for word, parts in embeddings.items():
                for part, tensor in parts.items():
                    if _ENCODERS.get(part) == encoder:
                        vectors |= _by_token(word, tensor)
            if vectors:
                stack.enter_context(_taught(pipe, encoder, vectors, lora))
        yield


def _by_token(word: str, vectors: Tensor) -> dict[str, Tensor]:
    """A word of several vectors is several tokens, which diffusers' pipelines expand it to."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    return {word if index == 0 else f"{word}_{index}": row for index, row in enumerate(rows)}


@contextmanager
def _taught(pipe: Any, encoder: str, vectors: Mapping[str, Tensor], lora: str) -> Iterator[None]:
    name = encoder.replace("text_encoder", "tokenizer")
    model, original = getattr(pipe, encoder, None), getattr(pipe, name, None)
    layer = model.get_input_embeddings() if model is not None else None
    if original is None or not isinstance(layer, nn.Embedding):
        raise IncompatibleAdapter(f"loras: {lora} brings words for {encoder}, which this model lacks.", field="loras")
    table = torch.stack(list(vectors.values()))
    if table.shape[1] != layer.embedding_dim:
        raise IncompatibleAdapter(
            f"loras: {lora} brings words of {table.shape[1]} numbers, and this model's have {layer.embedding_dim}; "
            "use a LoRA trained for this model's family.",
            field="loras",
        )
    tokenizer = copy.deepcopy(original)
    first = len(tokenizer)
    if tokenizer.add_tokens(list(vectors)) != len(vectors):
        raise IncompatibleAdapter(
            f"loras: {lora} brings words that the model or another LoRA has already; use one of them.", field="loras"
        )

    def mask(ids: Tensor) -> Tensor:
        return (ids >= first) & (ids < first + len(table))

    ids_before: list[Tensor] = []

    def hide(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids_before.append(args[0])
        return (args[0].masked_fill(mask(args[0]), 0), *args[1:])

    def answer(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ids = ids_before.pop()
        new = mask(ids)
        output = output.clone()
        output[new] = table.to(output)[ids[new] - first]
        return output

    handles = [layer.register_forward_pre_hook(hide), layer.register_forward_hook(answer)]
    setattr(pipe, name, tokenizer)
    try:
        yield
    finally:
        setattr(pipe, name, original)
        for handle in handles:
            handle.remove()
