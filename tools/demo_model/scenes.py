"""Scenes: one thing, in a colour, on a background, somewhere in a 64x64 image; and the captions for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.demo_model.artwork import SIZES
from tools.demo_model.things import THINGS, with_article

EDGE = 64
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (252, 214, 60),
    "green": (58, 160, 80),
    "blue": (45, 100, 210),
    "light blue": (130, 200, 245),
    "purple": (125, 60, 170),
    "pink": (250, 160, 190),
    "brown": (120, 80, 50),
    "gray": (150, 150, 150),
}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "orange": (250, 135, 20),
    "yellow": (255, 210, 40),
    "green": (50, 170, 75),
    "blue": (40, 95, 225),
    "purple": (130, 60, 185),
    "pink": (250, 120, 175),
    "gray": (135, 135, 135),
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)
COLOUR_NAMES = tuple(COLOURS)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_REAL_NAMES = frozenset(name for thing in THINGS for name in thing.names)
TRAINED_SIZES = SIZES[2:]  # 48 to 60 pixels: enough for seeds to differ, little enough to learn hundreds of things
MAX_SHIFT = 3


@dataclass(frozen=True)
class Scene:
    """What is drawn and where.

    ``thing`` indexes ``THINGS``, ``colour`` and ``background`` name a colour ("" = its own; "white" = plain), ``size``
    is the edge of the thing in pixels, ``shift`` its offset (right, down) from the centre in pixels.
    """

    thing: int
    colour: str = ""
    background: str = "white"
    size: int = 56
    shift: tuple[int, int] = (0, 0)


def colour_allowed(thing: int, colour: str) -> bool:
    """Say whether ``thing`` may be tinted: not where the words would name another image ("red apple")."""
    item = THINGS[thing]
    return item.tintable and f"{colour} {item.name}" not in _REAL_NAMES


def held_out(scene: Scene) -> bool:
    """Say whether training never sees this combination: a tenth of (thing, background) and of (colour, thing) pairs."""
    background = BACKGROUND_NAMES.index(scene.background)
    if background and (scene.thing * 7 + background * 13) % 10 == 0:
        return True
    return bool(scene.colour) and (scene.thing * 3 + COLOUR_NAMES.index(scene.colour) * 7) % 10 == 0


def random_placement(rng: np.random.Generator, wide: bool = False) -> tuple[int, tuple[int, int]]:
    """Draw a size and a shift, in pixels: as the denoiser learns them, or ``wide``, as the autoencoder does."""
    size = int(rng.choice(SIZES if wide else TRAINED_SIZES))
    limit = min(6 if wide else MAX_SHIFT, (EDGE - size) // 2)
    return size, (int(rng.integers(-limit, limit + 1)), int(rng.integers(-limit, limit + 1)))


def random_scene(thing: int, rng: np.random.Generator, wide: bool = False) -> Scene:
    """Draw a scene of ``thing`` that is not held out: half of them plain, a quarter tinted."""
    while True:
        colour = str(rng.choice(COLOUR_NAMES)) if rng.random() < 0.25 else ""
        background = str(rng.choice(BACKGROUND_NAMES)) if rng.random() < 0.5 else "white"
        if colour and (colour == background or not colour_allowed(thing, colour)):
            continue
        scene = Scene(thing, colour, background, *random_placement(rng, wide))
        if not held_out(scene):
            return scene


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Describe a scene; without ``rng`` in the plainest words, with it in a random phrasing."""
    item = THINGS[scene.thing]
    name = item.name
    if rng is not None and not scene.colour and len(item.names) > 1 and rng.random() < 0.4:
        name = str(rng.choice(item.names[1:]))
    noun = f"{scene.colour} {name}".strip()
    roll = rng.random() if rng is not None else 1.0
    text = noun if roll < 0.3 else "the " + noun if roll < 0.35 else with_article(noun, name)
    if rng is not None and rng.random() < 0.25:
        text = str(rng.choice(["an emoji of ", "an image of ", "a photo of ", "a drawing of "])) + text
    background = scene.background
    if background == "white" and (rng is None or rng.random() < 0.85):
        return text
    roll = rng.random() if rng is not None else 0.0
    if roll < 0.6:
        return f"{text} on {with_article(background)} background"
    return f"{text}, {background} background" if roll < 0.8 else f"{text} on {background}"


def tinted(premultiplied: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Repaint artwork (..., 4), premultiplied uint8, along a ramp from black over ``colour`` to white by luminance."""
    opacity = premultiplied[..., 3:].astype(np.float32) / 255
    straight = np.where(opacity > 0.003, premultiplied[..., :3] / np.maximum(opacity, 0.003), 0)
    luma = np.clip(straight @ _LUMA / 255, 0, 1)[..., None]
    hue = np.array(colour, np.float32)
    painted = np.where(luma < 0.55, hue * (luma / 0.55), hue + (255 - hue) * ((luma - 0.55) / 0.45))
    return np.concatenate([painted * opacity, opacity * 255], -1).round().clip(0, 255).astype(np.uint8)


def composed(artwork: np.ndarray, background: np.ndarray, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Lay premultiplied artwork (size, size, 4) over a background, (EDGE, EDGE, 3) or (3,): uint8 (EDGE, EDGE, 3)."""
    size = artwork.shape[0]
    image = np.empty((EDGE, EDGE, 3), np.float32)
    image[:] = background
    left, top = (EDGE - size) // 2 + shift[0], (EDGE - size) // 2 + shift[1]
    window = image[top : top + size, left : left + size]
    window *= 1 - artwork[..., 3:].astype(np.float32) / 255
    window += artwork[..., :3]
    return image.round().clip(0, 255).astype(np.uint8)


class Gallery:
    """The rendered artwork, read from the folder that ``artwork.render`` wrote."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.labels: list[str] = index["labels"]
        self.tags: list[list[str]] = index["tags"]
        self._sizes = {size: np.load(folder / f"artwork-{size}.npy", mmap_mode="r") for size in SIZES}
        places = {label: place for place, label in enumerate(self.labels)}
        missing = [thing.label for thing in THINGS if thing.label not in places]
        if missing:
            raise KeyError(f"no artwork for {missing}")
        self._places = [places[thing.label] for thing in THINGS]

    def any_artwork(self, place: int, size: int) -> np.ndarray:
        """Return the premultiplied artwork (size, size, 4) of the emoji at ``place``, known thing or not."""
        return np.asarray(self._sizes[size][place])

    def artwork(self, thing: int, size: int, colour: str = "") -> np.ndarray:
        """Return the premultiplied artwork (size, size, 4) of a known thing, tinted if ``colour`` is given."""
        plain = self.any_artwork(self._places[thing], size)
        return tinted(plain, COLOURS[colour]) if colour else plain

    def image(self, scene: Scene) -> np.ndarray:
        """Draw a scene: uint8, (EDGE, EDGE, 3)."""
        artwork = self.artwork(scene.thing, scene.size, scene.colour)
        return composed(artwork, np.array(BACKGROUNDS[scene.background], np.float32), scene.shift)
