"""Who is believed, in which order, and how sure the answer is.

1. models.yaml, where the operator says so (`service/resolving.py` applies it, and refuses where the files contradict).
2. The header: names and shapes. It is believed against everything below.
3. model_index.json, config.json, adapter_config.json.
4. What is declared: the page (CivitAI's baseModel and type, the Hub's base_model and tags), then the file's own
   metadata (modelspec.*, ss_*). It decides only what the header cannot show: the twin of a row (Kontext has FLUX.1's
   header), the variant (Turbo, Lightning, Pony …), the prediction type, the base of a LoRA whose keys do not tell.
5. Titles and file names: a hint. They decide no architecture; a variant or v-prediction from there has low confidence.

`confidence`: high, the files show it; medium, a declaration or a tie between equal classes decided; low, only a name
did. A contradiction is told in the evidence and changes nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from worker.catalog.architectures import ARCHITECTURES, Architecture, alike, by_class, fits
from worker.catalog.base_models import CIVITAI_KINDS, Base, known_base, says_v_prediction, variant_in
from worker.core.errors import UnsupportedModel
from worker.core.model import Confidence, Declaration, Detection, Kind

_FILE_KEYS = ("modelspec.architecture", "ss_base_model_version", "sd_checkpoint_name")
_FILE_TITLES = ("modelspec.title", "general.name", "ss_output_name")
_ROWS: Mapping[str, Architecture] = {row.id: row for row in ARCHITECTURES}
_ORDER: tuple[Confidence, ...] = ("low", "medium", "high")
# Kinds that belong to a base without being one: where nothing shows it, a declaration may say it.
_ADAPTERS = {Kind.LORA, Kind.TEXTUAL_INVERSION, Kind.CONTROLNET, Kind.T2I_ADAPTER, Kind.IP_ADAPTER, Kind.VAE}
_ADAPTERS |= {Kind.MOTION_MODULE, Kind.HYPERNETWORK}
_MODELS = {Kind.CHECKPOINT, Kind.DENOISER, Kind.PIPELINE}


@dataclass(frozen=True, slots=True)
class _Claim:
    """One statement about the base: who makes it, in which words, and what it means."""

    by: str
    text: str
    base: Base
    confidence: Confidence

    def __str__(self) -> str:
        return f"{self.by} says {self.text[:60]}"


def settle(found: Detection, metadata: Mapping[str, str], declared: Declaration | None, name: str = "") -> Detection:
    """Complete what the files show with what is declared. Raises UnsupportedModel for what is named as not runnable."""
    claims = tuple(_claims(metadata, declared, name))
    if found.kind is Kind.UNKNOWN:
        return _unknown(found, claims)
    found = _kind(found, declared)
    found = _architecture(found, claims)
    found = _variant(found, claims)
    return _prediction(found, claims, declared)


def _claims(metadata: Mapping[str, str], declared: Declaration | None, name: str) -> Iterator[_Claim]:
    """Yield what is declared of the base, then what tags and titles say of variant and prediction."""
    yield from _base_claims(metadata, declared)
    titles: list[tuple[str, str, Confidence]] = []
    if declared is not None:
        titles += [("the page's tag", tag, "medium") for tag in declared.tags]
        titles += [("the page's title", declared.name, "low")] if declared.name else []
    titles += [(f"metadata {key}", metadata[key], "low") for key in _FILE_TITLES if metadata.get(key)]
    titles += [("the file's name", name, "low")] if name else []
    for by, text, confidence in titles:
        prediction = "v_prediction" if says_v_prediction(text) else None
        base = Base(variant=variant_in(text), prediction_type=prediction)
        if base.variant or base.prediction_type:
            yield _Claim(by, text, base, confidence)


def _base_claims(metadata: Mapping[str, str], declared: Declaration | None) -> Iterator[_Claim]:
    told: list[tuple[str, str | None, Confidence]] = []
    if declared is not None:
        told.append(("the page", declared.base, "medium"))
        row = by_class(declared.pipeline) if declared.pipeline else None
        if row is not None:
            yield _Claim("the page's tag", declared.pipeline or "", Base(row.id), "medium")
    told += [(f"metadata {key}", metadata.get(key), "medium") for key in _FILE_KEYS]
    for by, text, confidence in told:
        base = known_base(text) if text else None
        if base is not None and text:
            # what the base is called may name the variant as well: lightx2v/…-Lightning
            yield _Claim(by, text, base if base.variant else replace(base, variant=variant_in(text)), confidence)


def _unknown(found: Detection, claims: tuple[_Claim, ...]) -> Detection:
    for claim in claims:
        if claim.base.refused:
            raise UnsupportedModel(f"{claim}, which {claim.base.refused}.", details={"evidence": list(found.evidence)})
    said = tuple(f"{claim}, which its tensors do not show" for claim in claims if claim.base.architecture)
    return replace(found, evidence=found.evidence + said[:1])


def _kind(found: Detection, declared: Declaration | None) -> Detection:
    said = CIVITAI_KINDS.get(declared.kind) if declared and declared.kind else None
    if said is None or said is found.kind or {said, found.kind} <= _MODELS:
        return found
    return replace(found, evidence=(*found.evidence, f"the page says {said}, which the tensors contradict"))


def _architecture(found: Detection, claims: tuple[_Claim, ...]) -> Detection:
    for claim in claims:
        said = claim.base.architecture
        if said is None or said == found.architecture:
            continue
        row = _ROWS.get(said)
        if found.architecture is None:
            if found.kind in _ADAPTERS and found.kind is not Kind.VAE:
                evidence = (*found.evidence, f"{claim}: {said}")
                return replace(found, architecture=said, evidence=evidence, confidence=_least(found, claim))
        elif found.format != "diffusers" and found.kind in _MODELS and row and row.twin == found.architecture:
            return replace(
                found,
                architecture=said,
                pipeline=next(iter(row.pipelines.values())),
                tasks=tuple(row.pipelines),
                native_size=row.native_size,
                evidence=(*found.evidence, f"{claim}: {said}, whose header looks the same"),
                confidence=_least(found, claim),
            )
        elif found.kind is Kind.LORA and alike(said, found.architecture):
            evidence = (*found.evidence, f"{claim}: {said}")
            return replace(found, architecture=said, evidence=evidence, confidence=_least(found, claim))
        elif not fits(said, found.architecture):
            return replace(found, evidence=(*found.evidence, f"{claim}, which the tensors contradict"))
    return found


def _variant(found: Detection, claims: tuple[_Claim, ...]) -> Detection:
    row = _ROWS.get(found.architecture or "")
    if row is None or found.variant is not None:
        return found
    for claim in claims:
        variant = claim.base.variant
        if variant in row.variants and fits(claim.base.architecture, row.id):
            evidence = (*found.evidence, f"{claim}: {variant}")
            return replace(found, variant=variant, evidence=evidence, confidence=_least(found, claim))
    return found


def _prediction(found: Detection, claims: tuple[_Claim, ...], declared: Declaration | None) -> Detection:
    row = _ROWS.get(found.architecture or "")
    if found.prediction_type is not None or found.kind not in _MODELS or row is None or not row.epsilon_or_v:
        return found
    said: list[tuple[str | None, str, Confidence]] = [
        (claim.base.prediction_type, str(claim), claim.confidence) for claim in claims
    ]
    if declared is not None and declared.prediction_type in ("epsilon", "v_prediction"):
        said.insert(0, (declared.prediction_type, f"the page says {declared.prediction_type}", "medium"))
    for prediction, text, confidence in said:
        if prediction is not None:
            sure: Confidence = min(found.confidence, confidence, key=_ORDER.index)
            # NoobAI and its kin were trained down to zero signal together with v-prediction
            zero = prediction == "v_prediction" and found.variant == "noobai"
            evidence = (*found.evidence, f"{text}: {prediction}")
            return replace(
                found,
                prediction_type=prediction,
                zero_snr=found.zero_snr or zero,
                evidence=evidence,
                confidence=sure,
            )
    return found


def _least(found: Detection, claim: _Claim) -> Confidence:
    return min(found.confidence, claim.confidence, key=_ORDER.index)
