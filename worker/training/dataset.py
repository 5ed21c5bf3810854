"""Images and captions to learn from: a folder or a ZIP file, and what is wrong with them before money is spent."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from worker.core.errors import InvalidImage, InvalidRequest
from worker.core.image import Raster
from worker.core.training import MaskKind, TrainingOptions
from worker.media.decoding import decode_image
from worker.media.images import to_pil
from worker.training import masks as mask_files
from worker.training.masks import MASKS, Mask
from worker.training.repeats import repeats_of
from worker.training.sources import Files, Source, SourceNames, check_all, source_of, sources_among

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTION_FILES = ("metadata.jsonl", "captions.jsonl")
MAX_IMAGES = 10_000
MAX_CAPTION = 2_000  # characters
_MAX_FILE_BYTES = 64 * 2**20
_MAX_TEXT_BYTES = 16 * 2**20
_PLACE = re.compile(r"\{(caption|trigger|name)\}")
_ALIKE_BITS = 4  # of 64 that differ between images that show the same


Lines = Mapping[str, Mapping[str, Any]]  # of metadata.jsonl, by the names of their images


@dataclass(frozen=True, slots=True)
class Example:
    """One image of a dataset with its caption; `read` returns the bytes of its file."""

    name: str
    caption: str
    digest: str  # SHA-256 of the file
    width: int
    height: int
    look: int  # 64 bits that hardly change when the image is scaled or saved again (dHash)
    read: Callable[[], bytes]
    mask: Mask | None = None
    repeats: int = 1  # how often it counts in a round of all
    source: Source | None = None  # what it is made of, for a model that edits

    def raster(self) -> Raster:
        """Decode the image's pixels, upright and opaque."""
        return decode_image(self.read(), self.name).raster


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples that can be learnt from, and a sentence for every fault that was found."""

    examples: tuple[Example, ...]
    faults: tuple[str, ...] = ()

    @property
    def lessons(self) -> int:
        """How many lessons a round of all has: every image as often as it counts."""
        return sum(each.repeats for each in self.examples)

    def rounds(self, options: TrainingOptions) -> float:
        """Return how often an image is seen that counts once."""
        return options.steps * options.images_a_step / self.lessons / (2 if options.flip else 1)

    @property
    def digest(self) -> str:
        """SHA-256 of every image, caption, mask, source and how often it counts, in their order."""
        parts = (f"{each.digest}\0{each.caption}{_beside(each)}\n" for each in self.examples)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def has_sources(self) -> bool:
        """True if its images are made of others: all are, or none is."""
        return self.examples[0].source is not None

    def split(self, share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """Return the examples to learn and those held out: `share` of them, chosen by their digests, at least one.

        Raises InvalidRequest if there are too few for that.
        """
        count = max(1, round(share * len(self.examples))) if share else 0
        if count and len(self.examples) < 2:
            raise InvalidRequest(
                "held_out leaves nothing to learn: data has one image; leave held_out out.", field="held_out"
            )
        held = sorted(self.examples, key=lambda each: each.digest)[:count]
        return tuple(each for each in self.examples if each not in held), tuple(held)


def read_dataset(
    path: Path,
    *,
    trigger: str = "",
    caption: str | None = None,
    template: str | None = None,
    mask: MaskKind = "files",
) -> Dataset:
    """Read a folder or a ZIP file of images.

    An image's caption is the text file of its name, else its line of metadata.jsonl (`file_name` and `text`), else
    `caption`; `template` says how it is written. It counts `repeats` of its line times, else as its folder says, as
    `10_cat`. Its mask is a file by its name, else with `mask` of alpha its transparency; masks are no images whatever
    `mask` is. Its source, if it has one, is a file by its name or by its line. Raises InvalidRequest where nothing can
    be learnt.
    """
    files = _zip_files(path) if path.is_file() else _folder_files(path)
    lines = _listed(files)
    images, masks, sources = _told_apart(files, lines)
    if not images:
        raise InvalidRequest(
            f"data holds no image in {path.name[:80]}; give a folder or a ZIP file of PNG, JPEG or WebP images.",
            field="data",
        )
    if len(images) > MAX_IMAGES:
        raise InvalidRequest(f"data holds {len(images):,} images; at most {MAX_IMAGES:,} are learnt.", field="data")

    def written(text: str, name: str) -> str:
        return _caption(trigger, template, text or caption or "", name)

    examples, unread = _examples(files, images, lines, written, sources.of)
    if not examples:
        raise InvalidRequest(f"data has {len(images)} images and none can be read: {unread[0]}", field="data")
    kept, repeats = _without_repeats(examples)
    if mask != "off":
        kept, complaints = _with_masks(kept, {name: files[each] for name, each in masks.items()}, masks, mask)
        repeats += complaints
    return Dataset(kept, (*sources.faults, *unread, *repeats, *_alike(kept), *_without_words(kept)))


def _told_apart(files: Files, lines: Lines) -> tuple[list[str], dict[str, str], SourceNames]:
    """Return the names of images, the masks of these, and their sources, with what is wrong with the names of both."""
    found = [name for name in sorted(files) if name.lower().endswith(IMAGE_SUFFIXES)]
    masks = MASKS.among(found)
    all_masks = {each for each in found if MASKS.says_it(each)} | {*masks.values()}
    others = [each for each in found if each not in all_masks]
    sources = sources_among(others, lambda name: _line_of(lines, name))
    lost = sorted(all_masks - {*masks.values()})
    faults = (*(f"{each} is a mask, and its image is not there." for each in lost), *sources.faults)
    return [each for each in others if not sources.is_source(each)], masks, replace(sources, faults=faults)


def read_as_asked(path: Path, options: TrainingOptions) -> Dataset:
    """Read a folder or a ZIP file as the options of a training have it. Raises InvalidRequest."""
    dataset = read_dataset(
        path, trigger=options.trigger, caption=options.caption, template=options.template, mask=options.mask
    )
    if dataset.has_sources and options.class_prompt is not None:
        raise InvalidRequest(
            "class_prompt draws images of a class from words alone, and data has sources to make images of; leave it "
            "out.",
            field="class_prompt",
        )
    dataset.split(options.held_out)  # which refuses a share of too few
    return dataset


def _examples(
    files: Files, images: Sequence[str], lines: Lines, caption: Callable[[str, str], str], sources: Mapping[str, str]
) -> tuple[list[Example], list[str]]:
    """Return the images that can be read, with their captions and sources, and a sentence for each that cannot."""
    examples, faults = [], []
    for name in images:
        line = _line_of(lines, name)
        text = _own_caption(files, name) or _text_of(line)
        try:
            example = replace(_example(name, caption(text, name), files[name]), repeats=repeats_of(name, line))
            if name in sources:
                example = replace(example, source=source_of(sources[name], files[sources[name]]))
            examples.append(example)
        except (InvalidImage, OSError, zipfile.BadZipFile) as error:
            faults.append(f"{name} is left out: {error}")
    check_all([each.source for each in examples], [each.name for each in examples])
    return examples, faults


def _with_masks(
    examples: Sequence[Example], read: Mapping[str, Callable[[], bytes]], names: Mapping[str, str], kind: MaskKind
) -> tuple[tuple[Example, ...], list[str]]:
    """Return the examples with their masks, and a sentence for each mask that cannot be one."""
    found, faults = [], []
    for each in examples:
        mask, name = None, names.get(each.name, each.name)
        try:
            if each.name in read:
                mask = mask_files.mask_of(name, read[each.name], each.raster())
            elif kind == "alpha":
                mask = mask_files.alpha_of(name, each.read)
        except (InvalidImage, OSError, zipfile.BadZipFile) as error:
            faults.append(f"{name} is no mask of {each.name}, which is learnt whole: {error}.")
        found.append(replace(each, mask=mask))
    used = sum(each.mask is not None for each in found)
    return tuple(found), [*faults, *mask_files.told(used, len(found))]


def _of_mask(example: Example) -> str:
    return f"\0{example.mask.digest}" if example.mask is not None else ""


def _of_source(example: Example) -> str:
    return f"\0source {example.source.digest}" if example.source is not None else ""


def _beside(example: Example) -> str:
    repeats = f"\0x{example.repeats}" if example.repeats > 1 else ""
    return f"{_of_mask(example)}{_of_source(example)}{repeats}"


def _caption(trigger: str, template: str | None, text: str, name: str) -> str:
    if template is not None:
        values = {"caption": text, "trigger": trigger, "name": PurePosixPath(name).stem.replace("_", " ")}
        text = _PLACE.sub(lambda place: values[place[1]], template)
    words = text if trigger and trigger in text else f"{trigger} {text}"
    return " ".join(words.split())[:MAX_CAPTION]


def _folder_files(path: Path) -> Files:
    if not path.is_dir():
        raise InvalidRequest(
            f"data must be a folder or a ZIP file of images; {path.name[:80]!r} is neither.", field="data"
        )
    found = (each for each in sorted(path.rglob("*")) if each.is_file() and not each.name.startswith("."))
    return {each.relative_to(path).as_posix(): _reader(each) for each in found}


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise InvalidImage(f"it is over {_MAX_FILE_BYTES >> 20} MB")
        return path.read_bytes()

    return read


def _zip_files(path: Path) -> Files:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each.filename for each in archive.infolist() if not each.is_dir()]
    except zipfile.BadZipFile:
        raise InvalidRequest(f"data is no ZIP file: {path.name[:80]!r} cannot be read as one.", field="data") from None
    return {name: _zipped(path, name) for name in names if not PurePosixPath(name).name.startswith((".", "__MACOSX"))}


def _zipped(path: Path, name: str) -> Callable[[], bytes]:
    def read() -> bytes:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            data = file.read(_MAX_FILE_BYTES + 1)  # what its header says of its size is not believed
        if len(data) > _MAX_FILE_BYTES:
            raise InvalidImage(f"it is over {_MAX_FILE_BYTES >> 20} MB")
        return data

    return read


def _own_caption(files: Files, name: str) -> str:
    stem = name.rpartition(".")[0]
    read = files.get(f"{stem}.txt") or files.get(f"{stem}.caption")
    return read()[:_MAX_TEXT_BYTES].decode("utf-8-sig", "replace").strip() if read else ""


def _listed(files: Files) -> Lines:
    """Return the lines of metadata.jsonl by the names of their images."""
    rows: dict[str, Mapping[str, Any]] = {}
    for file in CAPTION_FILES:
        if file not in files:
            continue
        text = files[file]()[:_MAX_TEXT_BYTES].decode("utf-8-sig", "replace")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows[str(row["file_name"])] = dict(row)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise InvalidRequest(
                    f'data: line {number} of {file} must be JSON like {{"file_name": "1.png", "text": "a caption"}}.',
                    field="data",
                ) from None
    return rows


def _line_of(lines: Lines, name: str) -> Mapping[str, Any]:
    return lines.get(name) or lines.get(PurePosixPath(name).name) or {}


def _text_of(line: Mapping[str, Any]) -> str:
    return str(line.get("text") or line.get("caption") or line.get("prompt") or "")


def _example(name: str, caption: str, read: Callable[[], bytes]) -> Example:
    data = read()
    raster = decode_image(data, name).raster
    digest = hashlib.sha256(data).hexdigest()
    return Example(name, caption, digest, raster.width, raster.height, _look(raster), read)


def _look(raster: Raster) -> int:
    """Return the signs of 64 horizontal differences of the image at 9 x 8 pixels."""
    small = np.asarray(to_pil(raster).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _without_repeats(examples: Sequence[Example]) -> tuple[tuple[Example, ...], list[str]]:
    first: dict[tuple[str, str], Example] = {}
    faults = []
    for each in examples:
        known = first.setdefault((each.digest, _of_source(each)), each)
        if known is not each:
            faults.append(f"{each.name} is left out: it is the same file as {known.name}.")
        elif each.source is not None and each.source.digest == each.digest:
            faults.append(f"{each.name} and its source are the same file; that teaches to change nothing.")
    return tuple(first.values()), faults


def _alike(examples: Sequence[Example]) -> Iterator[str]:
    looks = np.array([each.look for each in examples], np.uint64)
    for index, each in enumerate(examples):
        differing = np.bitwise_count(looks[index + 1 :] ^ looks[index])
        same_caption = (
            other
            for other, bits in zip(examples[index + 1 :], differing, strict=True)
            if bits <= _ALIKE_BITS and _of_source(other) == _of_source(each)
        )
        for other in same_caption:
            yield f"{other.name} looks like {each.name}; what is shown twice is learnt twice."
            break


def _without_words(examples: Sequence[Example]) -> Iterator[str]:
    names = [each.name for each in examples if not each.caption]
    if names:
        yield (
            f"{len(names)} images have no caption, {names[0]} first; add a .txt file beside each, a trigger, or "
            "a caption for all."
        )


def mirrored(example: Example) -> Example:
    """Return the example seen in a mirror: its pixels are turned when it is read."""

    def read() -> bytes:
        image = to_pil(example.raster()).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    mask = None if example.mask is None else mask_files.mirrored(example.mask)
    source = None if example.source is None else example.source.mirrored()
    name, digest = f"{example.name} (mirrored)", f"{example.digest}-mirrored"
    return replace(example, name=name, digest=digest, read=read, mask=mask, source=source)


def shown(faults: tuple[str, ...], most: int = 10) -> list[str]:
    """Return the first faults of a dataset, and how many more there are."""
    return [*faults[:most], *([f"and {len(faults) - most} more like these"] if len(faults) > most else [])]
