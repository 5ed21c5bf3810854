"""What learns in a pipeline: an adapter in its denoiser, and in its text encoders if asked; a word; or the denoiser.

Each has parameters in a fixed order, weights by name that a checkpoint keeps, and a file that serving reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from worker.core.training import TrainingOptions
from worker.training.adapter import attach, set_weights, text_targets, weights_of, write_adapter
from worker.training.whole_model import write_part
from worker.training.words import LearntWord, text_encoders

Learning = list[tuple[str, nn.Parameter]]


class Learner(Protocol):
    """What learns."""

    learning: Learning
    reads_words: bool
    """True if what it learns is in how words are read: then they are read anew at every step."""

    def prompt(self, text: str) -> str:
        """Return a caption as the tokenizers shall see it."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """Return what is learnt, as float32 on the CPU."""
        ...

    def put_back(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what `weights` returned."""
        ...

    def write(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write the file that serving reads."""
        ...


class AdapterLearner:
    """An adapter laid into the denoiser and, with `text_encoder`, into the text encoders."""

    def __init__(self, pipe: Any, denoiser: tuple[str, nn.Module], options: TrainingOptions) -> None:
        encoders = text_encoders(pipe) if options.text_encoder else {}
        self._hosts = dict([denoiser]) | encoders
        self._rank, self.reads_words = options.rank, bool(encoders)
        self.learning: Learning = []
        for name, module in self._hosts.items():
            targets = text_targets(module) if name in encoders else None
            self.learning += [(f"{name}.{key}", each) for key, each in attach(module, options, targets)]

    def prompt(self, text: str) -> str:
        """Return it as it is."""
        return text

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the adapter's weights by component and peft's names."""
        return {f"{name}.{key}": value for name, each in self._hosts.items() for key, value in weights_of(each).items()}

    def put_back(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what `weights` returned."""
        for name, module in self._hosts.items():
            start = f"{name}."
            set_weights(module, {key.removeprefix(start): v for key, v in weights.items() if key.startswith(start)})

    def write(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write it in diffusers' spelling, and in kohya's beside it."""
        return write_adapter(path, self._hosts, self._rank, metadata)


class WordLearner:
    """The vectors of a new word."""

    reads_words = True

    def __init__(self, pipe: Any, options: TrainingOptions) -> None:
        self._word = LearntWord(pipe, options.trigger, options.vectors, options.like)
        self.learning: Learning = list(self._word.vectors.items())

    def prompt(self, text: str) -> str:
        """Return the caption with a token for each vector."""
        return self._word.prompt(text)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the vectors by encoder."""
        return {name: value.detach().float().cpu().clone() for name, value in self._word.vectors.items()}

    def put_back(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what `weights` returned."""
        for name, value in weights.items():
            self._word.vectors[name].data.copy_(value)

    def write(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write the vectors under the word, or under their encoders where there are several."""
        return self._word.write(path, metadata)


class WholeLearner:
    """The denoiser itself, every weight of it, in float32."""

    reads_words = False

    def __init__(self, denoiser: tuple[str, nn.Module]) -> None:
        self._name, self._module = denoiser
        self._module.requires_grad_(True)
        self.learning: Learning = sorted(self._module.named_parameters())
        for _, parameter in self.learning:
            parameter.data = parameter.data.float()

    def prompt(self, text: str) -> str:
        """Return it as it is."""
        return text

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the denoiser's weights by their names in it."""
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.learning}

    def put_back(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take what `weights` returned."""
        for name, value in self.learning:
            value.data.copy_(weights[name])

    def write(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write the denoiser into its own folder below `path`, that of a whole model."""
        return write_part(path / self._name, self._module, metadata)


def learner_of(pipe: Any, denoiser: tuple[str, nn.Module], options: TrainingOptions) -> Learner:
    """Return what learns, fresh; everything else in the pipeline is frozen."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    match options.method:
        case "embedding":
            return WordLearner(pipe, options)
        case "full":
            return WholeLearner(denoiser)
        case _:
            return AdapterLearner(pipe, denoiser, options)
