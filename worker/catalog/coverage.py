"""Rows for docs/models.md: everything recognised, read off the tables, so that the page promises what they hold."""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.catalog.architectures import ARCHITECTURES, Architecture
from worker.catalog.base_models import CIVITAI_BASES
from worker.catalog.detectors.adapters import ALGORITHMS, lora_bases
from worker.catalog.detectors.companions import COMPANIONS
from worker.catalog.detectors.components import component_classes
from worker.catalog.detectors.controlnets import CONTROLNETS
from worker.catalog.detectors.encoders import TEXT_ENCODERS, VAES
from worker.catalog.detectors.unsupported import REFUSED
from worker.catalog.lora_keys import DIALECTS
from worker.catalog.pipelines.names import OTHER_MEDIA
from worker.core.model import Kind, Task


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """One model family: its tasks, the files it comes in, its variants, and the adapters that fit it."""

    architecture: str
    title: str
    tasks: tuple[Task, ...]
    files: tuple[str, ...]  # "diffusers", "checkpoint", "denoiser", "gguf"
    variants: tuple[str, ...]
    loras_recognised: bool  # true if a LoRA's keys show this base
    twin: str | None  # the family whose files look the same; CivitAI's baseModel or the Hub's tags decide
    controlnets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind of file that is no model by itself."""

    kind: Kind
    what: str
    architecture: str | None
    reader: str | None  # the diffusers or transformers class


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A kind of model that is recognised and not run, with the reason."""

    what: str
    why: str


def families() -> Iterator[FamilyRow]:
    """Yield one row for each architecture, in the table's order."""
    bases = lora_bases()
    saved_pipelines = {
        name for row in component_classes().values() if row.kind is Kind.DENOISER for name in row.pipelines
    }
    for row in ARCHITECTURES:
        controlnets = tuple(
            dict.fromkeys(controlnet.what for controlnet in CONTROLNETS if controlnet.architecture == row.adapter_base)
        )
        yield FamilyRow(
            row.id,
            row.title,
            tuple(row.pipelines),
            _files(row, saved_pipelines),
            tuple(row.variants),
            row.adapter_base in bases,
            row.twin,
            controlnets,
        )


def _files(row: Architecture, saved_pipelines: set[str]) -> tuple[str, ...]:
    """Name the forms in which a family's files are recognised; a twin's look like those of the other row."""
    files = ["diffusers"]
    model = next((candidate for candidate in ARCHITECTURES if candidate.id == row.twin), row)
    if model.checkpoint:
        files.append("checkpoint")
    if model.denoiser or saved_pipelines & set(model.pipelines.values()):
        files.append("denoiser")
    if model.denoiser:
        files.append("gguf")
    return tuple(files)


def kinds() -> Iterator[KindRow]:
    """Yield the kinds of files that complete a model, and those that nothing here uses."""
    for companion in COMPANIONS:
        yield KindRow(companion.kind, companion.what, companion.architecture, companion.component_class)
    yield KindRow(Kind.TEXTUAL_INVERSION, "token vectors, for one text encoder or a pair", None, None)
    base = next(row.id for row in ARCHITECTURES if row.hypernetworks)
    yield KindRow(Kind.HYPERNETWORK, "a hypernetwork (in a pickle, where the operator allows those)", base, None)
    for controlnet in CONTROLNETS:
        yield KindRow(Kind.CONTROLNET, controlnet.what, controlnet.architecture, controlnet.component_class)
    for encoder in (*VAES, *TEXT_ENCODERS):
        yield KindRow(encoder.kind, encoder.variant, encoder.architecture, encoder.component_class)


def refusals() -> Iterator[RefusedRow]:
    """Yield the models that are recognised and refused: by header, by pipeline class, by declared base."""
    for title, _, reason in REFUSED:
        yield RefusedRow(title, reason)
    for pattern, reason in OTHER_MEDIA:
        yield RefusedRow(f"pipeline classes like {pattern.pattern.replace('^', '')}", reason)
    for name, base in CIVITAI_BASES.items():
        if base.refused:
            yield RefusedRow(f"CivitAI's {name}", base.refused)


def lora_spellings() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the LoRA algorithms and the dialects that are told apart."""
    return ALGORITHMS, DIALECTS
