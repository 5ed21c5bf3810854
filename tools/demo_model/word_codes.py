"""First values of the word vectors: codes of the images that the words name.

Hundreds of unrelated word vectors would each have to be learned from the few captions they appear in. Starting from the
principal components of the images, the network has one shared map from codes to images to learn instead.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from tools.demo_model.latents import encoded
from tools.demo_model.scenes import BACKGROUND_NAMES, COLOUR_NAMES, Gallery, Scene
from tools.demo_model.things import THINGS

_COMPONENTS = 112
_RIDGE = 0.05
_SHARED = frozenset(("of", "with", "in", "and", "a", *COLOUR_NAMES, *BACKGROUND_NAMES))


def image_codes(vae: AutoencoderKL, gallery: Gallery) -> np.ndarray:
    """Return each thing's principal components (things, _COMPONENTS), the strong ones damped, rows of length one."""
    images = np.stack([gallery.image(Scene(thing)) for thing in range(len(THINGS))])
    latents = encoded(vae, images).reshape(len(THINGS), -1).numpy().astype(np.float64)
    left, strength, _ = np.linalg.svd(latents - latents.mean(0), full_matrices=False)
    codes = left[:, :_COMPONENTS] * np.sqrt(strength[:_COMPONENTS])
    return codes / np.linalg.norm(codes, axis=1, keepdims=True)


def word_codes(codes: np.ndarray, tokenizer: CLIPTokenizer, width: int) -> dict[int, Tensor]:
    """Share the codes out among words so that the words of a name add up to its code: token id to (width,)."""
    names = [(name, thing) for thing, item in enumerate(THINGS) for name in item.names]
    ids = [[k for k in tokenizer(name).input_ids[1:-1] if not _shared(tokenizer, k)] for name, _ in names]
    words = sorted({word for line in ids for word in line})
    place = {word: k for k, word in enumerate(words)}
    bag = np.zeros((len(names), len(words)))
    for row, line in enumerate(ids):
        bag[row, [place[word] for word in line]] = 1
    wanted = codes[[thing for _, thing in names]]
    solved = np.linalg.solve(bag.T @ bag + _RIDGE * np.eye(len(words)), bag.T @ wanted)
    turn = np.linalg.qr(np.random.default_rng(4).normal(size=(width, width)))[0][: codes.shape[1]]
    return {word: torch.from_numpy(solved[k] @ turn).float() for word, k in place.items()}


def _shared(tokenizer: CLIPTokenizer, token: int) -> bool:
    return tokenizer.convert_ids_to_tokens(token).removesuffix("</w>") in _SHARED
