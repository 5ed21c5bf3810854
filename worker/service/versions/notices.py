"""What an operator should know of models.yaml where it is not what is served."""

from collections.abc import Iterator

from worker.catalog.registry import Registry
from worker.catalog.versions import content_digest
from worker.service.versions.serving import Versions


def notices(versions: Versions, registry: Registry) -> Iterator[str]:
    """Yield a sentence for each entry that is no version of its model, and for each split that has ended. Blocking."""
    known = versions.all()
    for spec in registry.models.values():
        model = known.get(spec.id)
        if model is None:
            continue
        if model.stable is not None and content_digest(spec) not in {each.content.entry for each in model.versions}:
            yield (
                f"{spec.id} in models.yaml is none of its versions, so @stable, {model.stable.name}, goes on being "
                f"served; `python -m worker versions promote {spec.id} entry` makes it one."
            )
        if spec.split and model.of_file == spec.split and model.split is None:
            yield (
                f"the split of {spec.id} in models.yaml has ended, by a halt or a move of @stable; change or remove it "
                "there."
            )
        for arm in spec.split:
            if model.split is not None and model.find(arm) is None:
                yield f"the split of {spec.id} in models.yaml names {arm}, which there is not; @stable has its share."
