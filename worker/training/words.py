"""A word that is learnt: its vectors in the place of embeddings, in every CLIP text encoder of a pipeline.

Textual inversion, Gal et al., 2022. A word of several vectors is several tokens, as diffusers has it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from worker.core.errors import InvalidRequest, UnsupportedModel

_PARTS = ("clip_l", "clip_g")


def text_encoders(pipe: Any) -> dict[str, nn.Module]:
    """Return the CLIP text encoders by their names. Raises UnsupportedModel for a pipeline without one."""
    found = {
        name: part
        for name, part in pipe.components.items()
        if name.startswith("text_encoder") and part is not None and "CLIP" in type(part).__name__
    }
    if not found:
        raise UnsupportedModel(
            f"{type(pipe).__name__} has no CLIP text encoder, and other readers of words are not trained; train a LoRA "
            "without text_encoder.",
            field="method",
        )
    return found


class LearntWord:
    """A word of `count` vectors. They begin as those of the word `like`, else as the mean of all embeddings."""

    def __init__(self, pipe: Any, word: str, count: int, like: str | None) -> None:
        encoders = text_encoders(pipe)
        if not re.fullmatch(r"\S{1,64}", word):
            raise InvalidRequest(
                "trigger is the word that method embedding learns: send one without spaces, as <mascot>.",
                field="trigger",
            )
        self._word, self._tokens = word, [word, *(f"{word}_{index}" for index in range(1, count))]
        self.vectors: dict[str, nn.Parameter] = {}
        for part, (name, encoder) in zip(_PARTS, encoders.items(), strict=False):
            tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
            if tokenizer.add_tokens(self._tokens) != count:
                raise InvalidRequest(
                    "trigger is a word that the model knows already; choose another, as <mascot>.", field="trigger"
                )
            first = tokenizer.convert_tokens_to_ids(word)
            layer = encoder.get_input_embeddings()
            begin = self._begin(tokenizer, layer.weight, like)
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            layer = encoder.get_input_embeddings()
            layer.weight.requires_grad_(False)
            self.vectors[part] = vectors = nn.Parameter(begin.repeat(count, 1))
            layer.register_forward_hook(_in_place(vectors, first))

    @staticmethod
    def _begin(tokenizer: Any, embeddings: torch.Tensor, like: str | None) -> torch.Tensor:
        known = embeddings.detach().float()
        ids = tokenizer(like, add_special_tokens=False).input_ids if like else []
        return known[ids].mean(0, keepdim=True) if ids else known.mean(0, keepdim=True)

    def prompt(self, text: str) -> str:
        """Return a caption with all tokens in the word's place."""
        return text.replace(self._word, " ".join(self._tokens))

    def write(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write the vectors; the file appears whole or not at all."""
        tensors = {name: value.detach().float().cpu().contiguous() for name, value in self.vectors.items()}
        if len(tensors) == 1:
            tensors = {self._word: next(iter(tensors.values()))}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={**metadata, "name": self._word})
        partial.replace(path)
        return path


def _in_place(vectors: nn.Parameter, first: int) -> Callable[..., torch.Tensor]:
    """Return a hook that puts the vectors in the place of the embeddings of the tokens from `first` on."""

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        ids = args[0]
        mine = (ids >= first) & (ids < first + len(vectors))
        rows = vectors[(ids - first).clamp(0, len(vectors) - 1)].to(output.dtype)
        return torch.where(mine.unsqueeze(-1), rows, output)

    return hook
