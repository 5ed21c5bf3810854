"""Sources of a detection in the order in which they are believed, and the confidence of the answer.

1. models.yaml: the operator's word (`service/resolving.py` applies it, and refuses where the files contradict).
2. The header: names and shapes. It is believed against everything below.
3. model_index.json, config.json, adapter_config.json.
4. Declarations: the page (CivitAI's baseModel and type, the Hub's base_model and tags), then the file's own metadata
   (modelspec.*, ss_*). They decide only facts that the header cannot show: the twin of a row (Kontext has FLUX.1's
   header), the variant (Turbo, Lightning, Pony …), the prediction type, the base of a LoRA whose keys do not tell.
5. Titles and file names: a hint. They decide no architecture; a variant or v-prediction from there has low confidence.

`confidence` is high where the files show it. It is medium where a declaration or a tie between equal classes decided,
and low where only a name did. A contradiction goes into the evidence and changes nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from worker.catalog.architectures import ARCHITECTURES, Architecture, alike, by_class, fits
from worker.catalog.base_models import ABSENT, CIVITAI_KINDS, Base, known_base, says_v_prediction, variant_in
from worker.core.errors import UnsupportedModel
from worker.core.model import Confidence, Declaration, Detection, Kind

_FILE_KEYS = ("modelspec.architecture", "ss_base_model_version", "sd_checkpoint_name")
_FILE_TITLES = ("modelspec.title", "general.name", "ss_output_name")
_ROWS: Mapping[str, Architecture] = {row.id: row for row in ARCHITECTURES}
_ORDER: tuple[Confidence, ...] = ("low", "medium", "high")
# Kinds that belong to a base without being one: a declaration may name the base where no tensor shows it.
_ADAPTERS = {Kind.LORA, Kind.TEXTUAL_INVERSION, Kind.CONTROLNET, Kind.T2I_ADAPTER, Kind.IP_ADAPTER, Kind.VAE}
_ADAPTERS |= {Kind.MOTION_MODULE, Kind.HYPERNETWORK}
_MODELS = {Kind.CHECKPOINT, Kind.DENOISER, Kind.PIPELINE}


@dataclass(frozen=True, slots=True)
class _Claim:
    """One statement about the base: its source (`by`), its words and its meaning."""

    by: str
    text: str
    base: Base
    confidence: Confidence

    def __str__(self) -> str:
        return f"{self.by} says {self.text[:60]}"


def settle(
    detection: Detection, metadata: Mapping[str, str], declared: Declaration | None, name: str = ""
) -> Detection:
    """Complete a detection with the declarations.

    Raises UnsupportedModel where these name a model that cannot run here."""
    claims = tuple(_claims(metadata, declared, name))
    if detection.kind is Kind.UNKNOWN:
        return _unknown(detection, claims)
    if detection.kind is Kind.COMPONENT:  # a whole model without a model_index.json looks like one part
        _refuse(detection, [claim for claim in claims if claim.base.refused == ABSENT])
    detection = _kind(detection, declared)
    detection = _architecture(detection, claims)
    detection = _variant(detection, claims)
    return _prediction(detection, claims, declared)


def _claims(metadata: Mapping[str, str], declared: Declaration | None, name: str) -> Iterator[_Claim]:
    """Yield the declarations of the base, then those of tags and titles on variant and prediction."""
    yield from _base_claims(metadata, declared)
    titles: list[tuple[str, str, Confidence]] = []
    if declared is not None:
        titles += [("the page's tag", tag, "medium") for tag in declared.tags]
        titles += [("the page's title", declared.name, "low")] if declared.name else []
    titles += [(f"metadata {key}", metadata[key], "low") for key in _FILE_TITLES if metadata.get(key)]
    titles += [("the file's name", name, "low")] if name else []
    for by, text, confidence in titles:
        prediction = "v_prediction" if says_v_prediction(text) else None
        known = known_base(text)
        base = Base(variant=variant_in(text), prediction_type=prediction, refused=known.refused if known else None)
        if base.variant or base.prediction_type or base.refused:
            yield _Claim(by, text, base, confidence)


def _base_claims(metadata: Mapping[str, str], declared: Declaration | None) -> Iterator[_Claim]:
    names: list[tuple[str, str | None, Confidence]] = []
    if declared is not None:
        names.append(("the page", declared.base, "medium"))
        row = by_class(declared.pipeline) if declared.pipeline else None
        if row is not None:
            yield _Claim("the page's tag", declared.pipeline or "", Base(row.id), "medium")
    names += [(f"metadata {key}", metadata.get(key), "medium") for key in _FILE_KEYS]
    for by, text, confidence in names:
        base = known_base(text) if text else None
        if base is not None and text:
            # the base's name may hold the variant as well: lightx2v/…-Lightning
            yield _Claim(by, text, base if base.variant else replace(base, variant=variant_in(text)), confidence)


def _refuse(detection: Detection, claims: Iterable[_Claim]) -> None:
    for claim in claims:
        if claim.base.refused:
            raise UnsupportedModel(
                f"{claim}, which {claim.base.refused}.", details={"evidence": list(detection.evidence)}
            )


def _unknown(detection: Detection, claims: tuple[_Claim, ...]) -> Detection:
    _refuse(detection, claims)
    evidence = tuple(f"{claim}, which its tensors do not show" for claim in claims if claim.base.architecture)
    return replace(detection, evidence=detection.evidence + evidence[:1])


def _kind(detection: Detection, declared: Declaration | None) -> Detection:
    kind = CIVITAI_KINDS.get(declared.kind) if declared and declared.kind else None
    if kind is None or kind is detection.kind or {kind, detection.kind} <= _MODELS:
        return detection
    return replace(detection, evidence=(*detection.evidence, f"the page says {kind}, which the tensors contradict"))


def _architecture(detection: Detection, claims: tuple[_Claim, ...]) -> Detection:
    for claim in claims:
        architecture = claim.base.architecture
        if architecture is None or architecture == detection.architecture:
            continue
        row = _ROWS.get(architecture)
        if detection.architecture is None:
            if detection.kind in _ADAPTERS and detection.kind is not Kind.VAE:
                evidence = (*detection.evidence, f"{claim}: {architecture}")
                return replace(
                    detection, architecture=architecture, evidence=evidence, confidence=_least(detection, claim)
                )
        elif (
            detection.format != "diffusers" and detection.kind in _MODELS and row and row.twin == detection.architecture
        ):
            return replace(
                detection,
                architecture=architecture,
                pipeline=next(iter(row.pipelines.values())),
                tasks=tuple(row.pipelines),
                native_size=row.native_size,
                evidence=(*detection.evidence, f"{claim}: {architecture}, whose header looks the same"),
                confidence=_least(detection, claim),
            )
        elif detection.kind is Kind.LORA and alike(architecture, detection.architecture):
            evidence = (*detection.evidence, f"{claim}: {architecture}")
            return replace(detection, architecture=architecture, evidence=evidence, confidence=_least(detection, claim))
        elif not fits(architecture, detection.architecture):
            return replace(detection, evidence=(*detection.evidence, f"{claim}, which the tensors contradict"))
    return detection


def _variant(detection: Detection, claims: tuple[_Claim, ...]) -> Detection:
    row = _ROWS.get(detection.architecture or "")
    if row is None or detection.variant is not None:
        return detection
    for claim in claims:
        variant = claim.base.variant
        if variant in row.variants and fits(claim.base.architecture, row.id):
            evidence = (*detection.evidence, f"{claim}: {variant}")
            return replace(detection, variant=variant, evidence=evidence, confidence=_least(detection, claim))
    return detection


def _prediction(detection: Detection, claims: tuple[_Claim, ...], declared: Declaration | None) -> Detection:
    row = _ROWS.get(detection.architecture or "")
    if detection.prediction_type is not None or detection.kind not in _MODELS or row is None or not row.epsilon_or_v:
        return detection
    predictions: list[tuple[str | None, str, Confidence]] = [
        (claim.base.prediction_type, str(claim), claim.confidence) for claim in claims
    ]
    if declared is not None and declared.prediction_type in ("epsilon", "v_prediction"):
        predictions.insert(0, (declared.prediction_type, f"the page says {declared.prediction_type}", "medium"))
    for prediction, text, confidence in predictions:
        if prediction is not None:
            lowest: Confidence = min(detection.confidence, confidence, key=_ORDER.index)
            # NoobAI and its kin were trained down to zero signal together with v-prediction
            zero = prediction == "v_prediction" and detection.variant == "noobai"
            evidence = (*detection.evidence, f"{text}: {prediction}")
            return replace(
                detection,
                prediction_type=prediction,
                zero_snr=detection.zero_snr or zero,
                evidence=evidence,
                confidence=lowest,
            )
    return detection


def _least(detection: Detection, claim: _Claim) -> Confidence:
    return min(detection.confidence, claim.confidence, key=_ORDER.index)
