"""Files that stand beside an image and belong to it, told by their names: `a.mask.png` of `a.jpg`, or `masks/a.png`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class Siblings:
    """One kind of such files: the ending of their names, and the folder that is theirs."""

    ending: str
    folder: str

    def among(self, names: Sequence[str]) -> dict[str, str]:
        """Return the siblings among the names of a dataset's images, by the names of the images that they are of.

        The one of `sub/a.jpg` is `sub/a` with the ending, or `a` in a folder of the name below `sub`, or `sub/a` in one
        beside it, with any suffix of an image.
        """
        by_stem = {_stem(name): name for name in names}
        found = {}
        for name in names:
            path = PurePosixPath(_stem(name))
            places = (f"{path}{self.ending}", f"{self.folder}/{path}", str(path.parent / self.folder / path.name))
            sibling = next((by_stem[each] for each in places if each in by_stem), None)
            if sibling is not None and not self.says_it(name):
                found[name] = sibling
        return found

    def says_it(self, name: str) -> bool:
        """True for a name that says to be one, whether its image is there or not."""
        return _stem(name).endswith(self.ending)

    def is_inside(self, name: str) -> bool:
        """True for a file in a folder of these."""
        return self.folder in PurePosixPath(name).parts[:-1]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
