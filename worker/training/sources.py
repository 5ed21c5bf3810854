"""Sources of images, for models that edit: what an image shall be made of. Which file is whose source, and its pixels.

The source of `1.png` is `1.source.png` or `sources/1.png`, in any format, else the file that `source` names in its line
of metadata.jsonl. Where one image has a source, all do: an instruction means another thing without one.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import ImageOps

from worker.core.errors import InvalidImage, InvalidRequest
from worker.core.image import Raster
from worker.media.decoding import decode_image
from worker.media.images import to_pil
from worker.training.siblings import Siblings

SOURCES = Siblings(".source", "sources")
Files = Mapping[str, Callable[[], bytes]]


@dataclass(frozen=True, slots=True)
class Source:
    """What an image shall be made of; `read` returns the bytes of its file."""

    name: str
    digest: str
    width: int
    height: int
    read: Callable[[], bytes]

    def raster(self) -> Raster:
        """Decode its pixels."""
        return decode_image(self.read(), self.name).raster

    def mirrored(self) -> "Source":
        """Return it as seen in a mirror."""

        def read() -> bytes:
            ImageOps.mirror(to_pil(self.raster())).save(buffer := io.BytesIO(), "PNG")
            return buffer.getvalue()

        return Source(f"{self.name} (mirrored)", f"{self.digest}-mirrored", self.width, self.height, read)


@dataclass(frozen=True, slots=True)
class SourceNames:
    """The sources among the files of a dataset, by their images' names; and what is one, and whose image is not there.

    `faults` has a sentence on each of these, and on each that is named and not there.
    """

    of: Mapping[str, str]
    lost: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()

    def is_source(self, name: str) -> bool:
        """True for a file that is no image to learn."""
        return name in self.lost or name in self.of.values()


def sources_among(names: Sequence[str], line_of: Callable[[str], Mapping[str, Any]]) -> SourceNames:
    """Return the sources among a dataset's images. `line_of` returns an image's line of metadata.jsonl."""
    listed, faults = _listed(names, line_of)
    found = SOURCES.among(names) | listed
    used = {*found.values()}
    found = {name: source for name, source in found.items() if name not in used}
    has_folder = any(SOURCES.is_inside(each) for each in used)
    lost = {each for each in names if SOURCES.says_it(each) or (has_folder and SOURCES.is_inside(each))} - used
    faults += [f"{each} is a source, and its image is not there." for each in sorted(lost)]
    return SourceNames(found, frozenset(lost), tuple(faults))


def _listed(names: Sequence[str], line_of: Callable[[str], Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Return the sources that lines name, by their images, and a sentence on each that is not there."""
    there, found, faults = set(names), dict[str, str](), []
    for name in names:
        wanted = line_of(name).get("source")
        if not isinstance(wanted, str) or not wanted:
            continue
        places = (wanted, str(PurePosixPath(name).parent / wanted))
        source = next((each for each in places if each in there and each != name), None)
        if source is None:
            faults.append(f"{wanted[:80]} is named as the source of {name}, and it is not there.")
        else:
            found[name] = source
    return found, faults


def source_of(name: str, read: Callable[[], bytes]) -> Source:
    """Return the source in a file. Raises InvalidImage, with the reason, where it is none."""
    try:
        data = read()
        raster = decode_image(data, name).raster
    except (InvalidImage, OSError, zipfile.BadZipFile) as error:
        raise InvalidImage(f"its source {name} cannot be read: {error}") from None
    return Source(name, hashlib.sha256(data).hexdigest(), raster.width, raster.height, read)


def check_all(sources: Sequence[Source | None], names: Sequence[str]) -> None:
    """Raise InvalidRequest if some images have a source and others have none."""
    without = [name for name, source in zip(names, sources, strict=True) if source is None]
    if without and len(without) < len(sources):
        raise InvalidRequest(
            f"data has {len(sources) - len(without)} images with a source and {len(without)} without, "
            f"{without[0][:80]} first; give each image one, or none.",
            field="data",
        )
