"""Completion of single files: the components that a file lacks, and their sources."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.catalog.architectures import Architecture, architecture
from worker.core.call import KnownModel
from worker.core.errors import UnsupportedModel
from worker.core.model import DENOISERS, NEVER_COMPLETED, Kind, ModelSpec
from worker.core.single_file import encoder_kind

CONFIGS = Path(__file__).resolve().parents[2] / "catalog" / "configs"
SINGLE_FILES = frozenset({Kind.CHECKPOINT, Kind.DENOISER})
_T5 = frozenset({"text_encoder_3", "tokenizer_3"})
# Components without weights, by the ends of their class names.
_WEIGHTLESS = ("Tokenizer", "TokenizerFast", "Scheduler", "Processor", "ImageProcessor", "FeatureExtractor")
_VOCABULARIES = ("vocab.json", "tokenizer.json", "spiece.model", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Completion:
    """The completion of a single file: `config` describes its parts, `base` gives the `missing` ones."""

    config: Path | None
    base: str | None
    missing: tuple[str, ...]


def completion(model: KnownModel) -> Completion:
    """Return the completion of `model`'s single file. Raises UnsupportedModel before any download if there is none."""
    spec, detection = model.spec, model.detection
    row = architecture(detection.architecture) if detection.architecture else None
    config = _config(spec, row)
    if spec.base is not None and spec.config is None and not set(detection.parts) - {"denoiser"}:
        # The operator's base beats the family's: its tokenizers and sizes belong to its encoders.
        return Completion(None, spec.base, ())
    base = spec.base or (row.base_repo if row else None)
    if config is None:
        if base is not None:
            # No bundled config describes this family: every config, and all but the denoiser, is the base's.
            return Completion(None, base, ())
        raise _undescribed(spec, row)
    replaced = {"vae" if spec.vae else "", *spec.components}
    missing = tuple(name for name in _missing(config, model) if name not in replaced)
    if missing and base is None:
        raise UnsupportedModel(
            f"{spec.id} holds no {', '.join(missing)}; name the repository that has them as base in models.yaml.",
            field="model",
            details={"missing": list(missing)},
        )
    return Completion(config, base if missing else None, missing)


def _undescribed(spec: ModelSpec, row: Architecture | None) -> UnsupportedModel:
    return UnsupportedModel(
        f"{spec.id} is a single file of {row.title if row else 'an unknown family'}, whose configuration is not "
        "bundled; name the diffusers repository that it was made from as base in models.yaml.",
        field="model",
    )


def _config(spec: ModelSpec, row: Architecture | None) -> Path | None:
    """Return the operator's own config, else the bundled one of the family."""
    if spec.config:
        return Path(spec.config)
    return CONFIGS / row.config if row is not None and row.config else None


def _missing(config: Path, model: KnownModel) -> list[str]:
    parts = model.detection.parts
    index: Mapping[str, Any] = json.loads((config / "model_index.json").read_bytes())
    # Stable Diffusion 3 was also published with its CLIPs and without its T5: then it runs without it.
    without_t5 = "text_encoder_2" in parts and "t5" not in model.detection.encoders
    components = _held_components(index, model)
    missing = []
    for name, entry in index.items():
        if not isinstance(entry, list) or None in entry or name in NEVER_COMPLETED or (name in _T5 and without_t5):
            continue
        if str(entry[-1]).endswith(_WEIGHTLESS):
            if not _is_bundled(config / name, str(entry[-1])):
                missing.append(name)
        elif name not in components:
            missing.append(name)
    return missing


def _held_components(index: Mapping[str, Any], model: KnownModel) -> set[str]:
    """Return the components whose weights the file has. A checkpoint without a list of parts counts as whole.

    Text encoders of a kind are counted, not named: the only one of SDXL's refiner is its pipeline's second.
    """
    components = [name for name, entry in index.items() if isinstance(entry, list) and None not in entry]
    detection = model.detection
    if not detection.parts and detection.kind is Kind.CHECKPOINT and model.spec.base is None:
        return set(components)
    held = {*DENOISERS, *(part for part in detection.parts if not part.startswith("text_encoder"))}
    encoders: dict[str, list[str]] = {}
    for name in sorted(components):
        if name.startswith("text_encoder"):
            encoders.setdefault(encoder_kind(str(index[name][-1])), []).append(name)
    for kind, names in encoders.items():
        held.update(names[: detection.encoders.count(kind)])
    return held


def _is_bundled(folder: Path, class_name: str) -> bool:
    if not folder.is_dir():
        return False
    if "Tokenizer" not in class_name or any((folder / name).is_file() for name in _VOCABULARIES):
        return True
    return class_name.startswith("CLIP") and (folder.parent.parent / "tokenizers" / "clip").is_dir()
