"""Modular repositories of diffusers: the index of their parts as an ordinary one, or the reason why they do not run."""

import re
from collections import Counter
from collections.abc import Mapping

from worker.catalog.classes.modular import modular_pipelines, modular_refusal, parts_needed
from worker.core.errors import UnsupportedModel

MODULAR_INDEX = "modular_model_index.json"
# A pipeline of blocks that were put together by hand is saved as this. diffusers takes its class's own blocks for it.
_UNNAMED_BLOCKS = "SequentialPipelineBlocks"
_NO_CONFIG = re.compile("Tokenizer|Processor|FeatureExtractor|Scheduler")  # parts without a config.json


def ordinary_index(configs: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
    """Return the modular index with its parts as a model_index.json lists them.

    Raises UnsupportedModel for classes and blocks that are not diffusers' own, for classes that are not served, and
    for parts that do not lie in the repository.
    """
    index = configs[MODULAR_INDEX]
    _check_classes(str(index.get("_class_name")), index.get("_blocks_class_name"))
    listed = {part: entry for part, entry in index.items() if isinstance(entry, list) and len(entry) == 3}
    needed = parts_needed(str(index["_class_name"]))
    present = {part: entry for part, entry in listed.items() if entry[1] is not None}
    if missing := sorted(needed - present.keys()):
        raise UnsupportedModel(
            f"This modular repository has no {', '.join(missing)[:100]}, and only one with all parts that it uses is "
            "run here; use a whole one."
        )
    _check_places(present, configs)
    return {**index, **{part: entry[:2] for part, entry in listed.items()}}


def _check_classes(name: str, blocks: object) -> None:
    own = modular_pipelines().get(name)
    if own is None or blocks not in (None, own, _UNNAMED_BLOCKS):
        raise UnsupportedModel(
            f"This is a modular repository of {name[:80]} with {str(blocks)[:80]}, and only a modular pipeline of the "
            f"installed diffusers with its own blocks ({own or 'it has none of this name'}) is run here: no model "
            "brings its own code; use a model of diffusers' own blocks."
        )
    if reason := modular_refusal(name):
        raise UnsupportedModel(f"This is a modular repository of {name}, which {reason}; use another repository of it.")


def _check_places(listed: Mapping[str, list[object]], configs: Mapping[str, object]) -> None:
    """Refuse parts that are not there, and those from elsewhere: the home is the repository that most parts name."""
    places = {part: entry[2] if isinstance(entry[2], Mapping) else {} for part, entry in listed.items()}
    named = {part: str(place.get("pretrained_model_name_or_path") or "") for part, place in places.items()}
    home = next((name for name, _ in Counter(filter(None, named.values())).most_common(1)), "")
    for part, entry in listed.items():
        lacks_config = f"{part}/config.json" not in configs and not _NO_CONFIG.search(str(entry[1]))
        folder = str(places[part].get("subfolder") or part)
        if lacks_config or named[part] not in ("", home) or folder != part:
            source = f"{named[part][:100]}/{folder[:100]}".strip("/")
            raise UnsupportedModel(
                f"This modular repository takes its {part[:40]} from {source}, and only a repository "
                f"with all of its parts is run here; put that part into its folder {part[:40]}."
            )
