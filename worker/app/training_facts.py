"""What a training is given: its images and captions, and which weights it begins with."""

from typing import TYPE_CHECKING

from worker.catalog.call import Model
from worker.core.fingerprint import fingerprint
from worker.core.model import ModelFiles
from worker.core.training import DatasetFacts
from worker.service.training.trainings import Order

if TYPE_CHECKING:
    from worker.training.dataset import Dataset


def read_data(order: Order) -> "Dataset":
    """Read the images and captions that a training is to learn. Blocking."""
    from worker.training.dataset import read_as_asked

    return read_as_asked(order.data, order.options)


def facts_of(dataset: "Dataset") -> DatasetFacts:
    """Return what a dataset holds."""
    sides = [(each.width, each.height) for each in dataset.examples]
    return DatasetFacts(
        digest=dataset.digest,
        images=len(dataset.examples),
        repeated=dataset.lessons,
        captions=sum(bool(each.caption) for each in dataset.examples),
        masks=sum(each.mask is not None for each in dataset.examples),
        sources=sum(each.source is not None for each in dataset.examples),
        smallest=min(map(min, sides)),
        largest=max(map(max, sides)),
        faults=dataset.faults,
    )


def digest_of(model: Model, files: ModelFiles) -> str:
    """Return a digest of which weights these are, without reading them."""
    root = files.root
    listed = [root] if root.is_file() else sorted(each for each in root.rglob("*") if each.is_file())
    return fingerprint((model.spec.source, files.revision, [(each.name, each.stat().st_size) for each in listed]))
