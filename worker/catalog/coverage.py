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
from worker.catalog.pipelines.table import pipeline_row
from worker.core.model import Kind, Task


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """One model family: its tasks, the files it comes in, its variants, and the adapters that fit it."""

    architecture: str
    title: str
    tasks: tuple[Task, ...]
    files: tuple[str, ...]  # "diffusers", "checkpoint", "denoiser", "gguf"
    layouts: tuple[str, ...]  # of those files' tensor names: "diffusers", "original"
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
    for row in ARCHITECTURES:
        controlnets = tuple(
            dict.fromkeys(controlnet.what for controlnet in CONTROLNETS if controlnet.architecture == row.adapter_base)
        )
        yield FamilyRow(
            row.id,
            row.title,
            tuple(row.pipelines),
            _files(row),
            _layouts(row),
            tuple(row.variants),
            row.adapter_base in bases,
            row.twin,
            controlnets,
        )


def _model_of(row: Architecture) -> Architecture:
    """Return the row whose files a family's look like: a twin's are those of the other row."""
    return next((candidate for candidate in ARCHITECTURES if candidate.id == row.twin), row)


def _files(row: Architecture) -> tuple[str, ...]:
    """Name the forms in which a family's files are recognised."""
    files = ["diffusers"]
    model = _model_of(row)
    if model.checkpoint:
        files.append("checkpoint")
    if model.denoiser or _has_own_class(model):
        files.append("denoiser")
    if model.denoiser:
        files.append("gguf")
    return tuple(files)


def _layouts(row: Architecture) -> tuple[str, ...]:
    """Name the layouts of tensor names that are read in a family's files."""
    return ("diffusers", "original") if _model_of(row).original else ("diffusers",)


def _has_own_class(row: Architecture) -> bool:
    """True if a denoiser's class belongs to this family alone, so that its names show the family."""
    users = [
        {owner.id for owner in ARCHITECTURES if set(component.pipelines) & set(owner.pipelines.values())}
        for component in component_classes().values()
        if component.kind is Kind.DENOISER and not any(pipeline_row(name).refusal for name in component.pipelines)
    ]
    return any(row.id in owners and all(_model_of_id(owner) == row.id for owner in owners) for owners in users)


def _model_of_id(architecture: str) -> str:
    return next(row.twin or row.id for row in ARCHITECTURES if row.id == architecture)


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
