"""Embeddings of weighted and long prompts, in chunks of a text encoder's window.

The rules are those of AUTOMATIC1111's web UI, since its users' prompts are written for them. Each stretch of one weight
is tokenized by itself. A chunk holds as many tokens as the encoder's window without its two marks (75 of CLIP's 77). It
ends early where the prompt says BREAK, or after a comma among its last twenty tokens. Each chunk is encoded by itself
and the results stand in a row. A token's weight multiplies its numbers, and the chunk is then scaled back to its former
mean. The pooled vector is that of the first chunk, unweighted. A prompt without weights that fits one chunk gets, bit
for bit, the result of the pipeline's own `encode_prompt`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.core.prompt import parse_prompt

_COMMA_REACH = 20
# Below this share of its spread a mean is rounding: a normed layer's output has none, and nothing to restore.
_NO_MEAN = 1e-4
_USUAL_WINDOW = 77

Token = tuple[int, float]  # id, weight
Chunk = Sequence[Token]


@dataclass(frozen=True, slots=True)
class ClipEncoder:
    """A CLIP text encoder and its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def room(self) -> int:
        """Number of tokens of a prompt that fit into the encoder's window, its two marks aside."""
        longest = getattr(self.model.config, "max_position_embeddings", None) or _USUAL_WINDOW
        return int(min(self.tokenizer.model_max_length, longest)) - 2

    @property
    def layers(self) -> int:
        """Number of the encoder's layers."""
        return int(self.model.config.num_hidden_layers)

    def tokens(self, prompt: str) -> list[Token]:
        """Return all tokens of `prompt` as it stands, however many."""
        return _tokens(self.tokenizer, [(prompt, 1.0)])

    def chunks(self, prompt: str) -> list[Chunk]:
        """Return the tokens of `prompt` with its weights, in chunks; at least one."""
        comma = self.tokenizer.convert_tokens_to_ids(",</w>")
        sections = [_tokens(self.tokenizer, section) for section in _sections(prompt)]
        return [chunk for section in sections for chunk in _parted(section, self.room, comma)]

    def encode(self, chunks: Sequence[Chunk], device: torch.device) -> tuple[Any, Tensor]:
        """Return the model's output for `chunks` (one row each), and the weight of every token of them."""
        start, end, pad = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        rows, weights = [], []
        for chunk in chunks:
            free = self.room - len(chunk)
            rows.append([start, *(id_ for id_, _ in chunk), end, *[pad] * free])
            weights.append([1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * free])
        output = self.model(torch.tensor(rows).to(device), output_hidden_states=True)
        return output, torch.tensor(weights)


@dataclass(frozen=True, slots=True)
class T5Encoder:
    """A T5 text encoder and its tokenizer. It reads one sequence of at most `length` tokens, not chunks."""

    model: Any
    tokenizer: Any

    def tokens(self, prompt: str, *, weighted: bool = True) -> list[Token]:
        """Return all tokens of `prompt`, however many."""
        sections = _sections(prompt) if weighted else [[(prompt, 1.0)]]
        return [token for section in sections for token in _tokens(self.tokenizer, section)]

    def encode(self, prompt: str, length: int, device: torch.device) -> Tensor:
        """Return the embeddings of `prompt` as (1, length, width); tokens that do not fit are cut off."""
        tokens = self.tokens(prompt)[: length - 1]
        free = length - 1 - len(tokens)
        ids = [*(id_ for id_, _ in tokens), self.tokenizer.eos_token_id, *[self.tokenizer.pad_token_id] * free]
        weights = torch.tensor([[*(weight for _, weight in tokens), *[1.0] * (free + 1)]])
        return emphasised(self.model(torch.tensor([ids]).to(device))[0], weights)


def emphasised(hidden: Tensor, weights: Tensor) -> Tensor:
    """Return `hidden` (chunks, tokens, width) times each token's weight, every chunk with its former mean."""
    if bool((weights == 1.0).all()):
        return hidden
    plain = hidden.float()
    weighted = plain * weights.to(plain.device)[..., None]
    mean, weighted_mean = (part.mean(dim=(1, 2), keepdim=True) for part in (plain, weighted))
    noise = _NO_MEAN * plain.std(dim=(1, 2), keepdim=True)
    restorable = (mean.abs() > noise) & (weighted_mean.abs() > noise) & (mean * weighted_mean > 0)
    return torch.where(restorable, weighted * (mean / weighted_mean), weighted).to(hidden.dtype)


def _sections(prompt: str) -> Sequence[Sequence[tuple[str, float]]]:
    return [[(piece.text, piece.weight) for piece in section] for section in parse_prompt(prompt)]


def _tokens(tokenizer: Any, section: Sequence[tuple[str, float]]) -> list[Token]:
    # White space at a seam belongs to no word; T5 would make a token of it.
    texts = [(text.strip() if len(section) > 1 else text, weight) for text, weight in section]
    return [
        (id_, weight)
        for text, weight in texts
        for id_ in tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    ]


def _parted(tokens: Chunk, room: int, comma: int | None) -> list[Chunk]:
    chunks = []
    while len(tokens) > room:
        reach = range(room, max(room - _COMMA_REACH, 0), -1)
        cut = next((end for end in reach if tokens[end - 1][0] == comma), room)
        chunks.append(tokens[:cut])
        tokens = tokens[cut:]
    return [*chunks, tokens]
