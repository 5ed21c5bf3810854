"""The caption tokenizer: a small byte-pair vocabulary in CLIP's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from tools.demo_model.scenes import BACKGROUND_NAMES, COLOUR_NAMES, Gallery, caption, random_scene
from tools.demo_model.things import THINGS

LENGTH = 32
_MERGED = 2000
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def _corpus(gallery: Gallery) -> list[str]:
    rng = np.random.default_rng(1)
    lines = [caption(random_scene(thing, rng), rng) for thing in range(len(THINGS)) for _ in range(20)]
    lines += [name for thing in THINGS for name in thing.names] * 20
    lines += [*BACKGROUND_NAMES, *COLOUR_NAMES] * 50
    for label, tags in zip(gallery.labels, gallery.tags, strict=True):
        lines += [label, label, *tags]
    return lines


def write_vocabulary(gallery: Gallery, folder: Path) -> int:
    """Learn the merges; write ``vocab.json``, ``merges.txt`` and their settings. Returns the number of tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(unk_token=_END, end_of_word_suffix="</w>", fuse_unk=False))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGED,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=[_START, _END],
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(gallery), trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(left + right for left, right in merges)]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    settings = {**special, "add_prefix_space": False, "do_lower_case": True, "model_max_length": LENGTH}
    settings["tokenizer_class"] = "CLIPTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(vocabulary)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer from the four files of ``write_vocabulary``."""
    return CLIPTokenizer.from_pretrained(folder)
