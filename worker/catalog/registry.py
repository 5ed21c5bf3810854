"""Reader of models.yaml into a Registry. Any mistake in the file stops the start, with its line and the fix."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from worker.catalog import architectures
from worker.catalog.interface.checking import check_defaults
from worker.catalog.interface.sizes import LIMIT_KEYS
from worker.catalog.operator_file import FileError, KeyPath, OperatorFile, reason_of
from worker.catalog.recipes.recipe import Recipe
from worker.catalog.registry_schema import NAME, Entry, EntryDefaults, RegistryFile
from worker.core.errors import WorkerError
from worker.core.model import DENOISERS, Lightning, LoraSpec, ModelSource, ModelSpec, OwnUpscaler, Tier
from worker.core.own_training import OwnTraining
from worker.core.precision import DTYPES

_OVERRIDE = re.compile(r"DIFFUSERS_(?P<tier>[A-Z0-9_]+?)_(?P<setting>MAX_CONTAINERS|SCALEDOWN|TIMEOUT)")
_SETTINGS = {"MAX_CONTAINERS": "max_containers", "SCALEDOWN": "scaledown_s", "TIMEOUT": "timeout_s"}
_FOREIGN = frozenset({"DIFFUSERS_REQUEST_TIMEOUT"})  # diffusers reads this one itself
# Fields with the same name and meaning here and in ModelSpec.
_SHARED = (
    *("aliases", "description", "tasks", "architecture", "pipeline", "variant", "prediction_type", "min_vram_gb"),
    *("defaults", "limits", "fallback", "upscale", "quality", "precision", "refiner", "licence"),
    *("split", "paired", "golden", "device_map", "context_parallel", "training"),
)


class RegistryError(FileError):
    """A models.yaml that cannot be used. The message starts with `models.yaml:LINE: `."""


@dataclass(frozen=True, slots=True)
class Registry:
    """The models that this worker knows by name, their GPU tiers, and the recipes that are served beside them."""

    models: Mapping[str, ModelSpec]
    tiers: Mapping[str, Tier]
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def find(self, id_or_alias: str) -> ModelSpec | None:
        """Return the model with this id or alias, in any letter case, or None."""
        folded = id_or_alias.strip().casefold()
        for spec in self.models.values():
            if folded in (name.casefold() for name in (spec.id, *spec.aliases)):
                return spec
        return None

    def recipe(self, name: str | None) -> Recipe | None:
        """Return the recipe with this id, in any letter case, or None."""
        return self.recipes.get((name or "").strip().casefold())

    def nearest(self, text: str) -> list[str]:
        """Return the names of up to three models that look like `text`, best first."""
        owners = {
            name.casefold(): (spec.id, name) for spec in self.models.values() for name in (spec.id, *spec.aliases)
        }
        owners |= {name: (name, name) for name in self.recipes}
        # People remember a model by the part after the organisation.
        owners = {**{name.rpartition("/")[2]: owner for name, owner in owners.items()}, **owners}
        folded = text.strip().casefold()[:200]
        names = [name for name in owners if folded and folded in name]
        names += difflib.get_close_matches(folded, owners, n=9, cutoff=0.55)
        return list(dict(reversed([owners[name] for name in reversed(names)])).values())[:3]

    def with_model(self, spec: ModelSpec) -> "Registry":
        """Return this registry with `spec` added or replaced. Raises ValueError if another model has its name."""
        owners = {name.casefold(): model.id for model in self.models.values() for name in (model.id, *model.aliases)}
        for name in (spec.id, *spec.aliases):
            owner = owners.get(name.casefold(), spec.id)
            if owner != spec.id:
                raise ValueError(f"{name} already names the model {owner}; choose another id or alias.")
        return replace(self, models=MappingProxyType({**self.models, spec.id: spec}))

    def with_recipes(self, recipes: Mapping[str, Recipe]) -> "Registry":
        """Return this registry with these recipes. Raises RecipeError for one that has the name of a model."""
        for name, recipe in recipes.items():
            if (spec := self.find(name)) is not None:
                raise recipe.fail((), f"{name} already names the model {spec.id}; rename the file.")
        return replace(self, recipes=recipes)


def load_registry(
    path: Path,
    *,
    parse_source: Callable[[str], ModelSource],
    overrides: Mapping[str, str] = MappingProxyType({}),
) -> Registry:
    """Read and check a models.yaml. Raises RegistryError, with the line, on anything that is not right.

    `parse_source` turns a model reference into its source and raises WorkerError or ValueError on a bad one.
    `overrides` are DIFFUSERS_<TIER>_MAX_CONTAINERS, _SCALEDOWN and _TIMEOUT (seconds); other keys are ignored.
    """
    return _Reading(path, parse_source).registry(overrides)


class _Reading(OperatorFile):
    """One reading of one models.yaml."""

    error = RegistryError
    keys = "defaults, tiers and models"
    nested = MappingProxyType(
        {
            **{"defaults": EntryDefaults, "tiers": Tier, "loras": LoraSpec, "lightning": Lightning},
            **{"upscale": OwnUpscaler, "training": OwnTraining},
        }
    )

    def __init__(self, path: Path, parse_source: Callable[[str], ModelSource]) -> None:
        super().__init__(path)
        self.parse_source = parse_source

    def registry(self, overrides: Mapping[str, str]) -> Registry:
        data = self.data()
        file = self.parsed(RegistryFile, data, ())
        tiers = self.overridden(file.tiers, overrides)
        if file.defaults.tier is not None and file.defaults.tier not in tiers:
            raise self.unknown_tier(("defaults", "tier"), file.defaults.tier, tiers)
        models: dict[str, ModelSpec] = {}
        owners: dict[str, tuple[str, int]] = {}
        for model, entry in file.models.items():
            keys: KeyPath = ("models", model)
            spec = self.spec(model, self.parsed(Entry, {} if entry is None else entry, keys), file.defaults, tiers)
            for place, name in [(keys, model), *(((*keys, "aliases", i), name) for i, name in enumerate(spec.aliases))]:
                if name.casefold() in owners:
                    owner, line = owners[name.casefold()]
                    raise self.fail(place, f"{name} already names {owner} (line {line}); choose another id or alias.")
                owners[name.casefold()] = (model, self.line(place))
            models[model] = spec
        known = {name: owner for name, (owner, _) in owners.items()}
        for model, spec in models.items():
            for key, name in spec.other_models.items():
                self.check_other(("models", model, key), name, model, known)
        return Registry(MappingProxyType(models), MappingProxyType(tiers))

    def spec(self, model: str, entry: Entry, defaults: EntryDefaults, tiers: Mapping[str, Tier]) -> ModelSpec:
        """Return one entry as a ModelSpec, checked against the tables."""
        keys: KeyPath = ("models", model)
        if not re.match(NAME, model):
            raise self.fail(keys, f"{model[:64]!r} cannot be a model id; use letters, digits and . _ - / only.")
        source = self.revised(keys, model, entry)
        tier = self.tier(keys, entry, defaults, tiers)
        self.check_family(keys, model, entry)
        self.check_limits(keys, entry.limits)
        self.check_precision(keys, entry)
        self.check_split(keys, entry)
        self.check_device_map((*keys, "device_map"), entry)
        self.check_context_parallel((*keys, "context_parallel"), entry)
        spec = ModelSpec(
            **{name: getattr(entry, name) for name in _SHARED},
            id=model,
            source=source.model_copy(update={"without": entry.replaced_parts}),
            config=str(self.beside(entry.config)) if entry.config else None,
            subjects=self.names_in((*keys, "subjects"), entry.subjects) if entry.subjects else (),
            base=entry.base and self.adapter((*keys, "base"), entry.base),
            vae=entry.vae and self.adapter((*keys, "vae"), entry.vae),
            components={
                name: self.adapter((*keys, "components", name), reference)
                for name, reference in entry.components.items()
            },
            tier=tier,
            timeout_s=tiers[tier].timeout_s if tier else None,
            dtype=entry.dtype or defaults.dtype,
            loras=self.loras((*keys, "loras"), entry.loras),
            lightning=entry.lightning and self.lightning((*keys, "lightning"), entry.lightning),
        )
        try:
            check_defaults(spec)
        except WorkerError as error:
            section = ("defaults",) if error.field in spec.defaults else ("lightning", "defaults")
            raise self.fail((*keys, *section, error.field or ""), error.message) from error
        return spec

    def check_split(self, keys: KeyPath, entry: Entry) -> None:
        """Raise for pairs without another arm."""
        if entry.paired and len(entry.split) < 2:
            raise self.fail((*keys, "paired"), "paired needs a split of two arms or more; add split, or remove it.")

    def loras(self, keys: KeyPath, loras: Sequence[LoraSpec]) -> tuple[LoraSpec, ...]:
        """Return an entry's LoRAs with complete references."""
        return tuple(
            lora.model_copy(update={"model": self.adapter((*keys, index), lora.model)})
            for index, lora in enumerate(loras)
        )

    def lightning(self, keys: KeyPath, lightning: Lightning) -> Lightning:
        """Return an entry's distillation LoRAs with complete references."""
        others = {steps: self.adapter((*keys, "others", str(steps)), lora) for steps, lora in lightning.others.items()}
        return lightning.model_copy(update={"lora": self.adapter(keys, lightning.lora), "others": others})

    def revised(self, keys: KeyPath, model: str, entry: Entry) -> ModelSource:
        """Return an entry's source, at the revision that either of its two fields names."""
        source = self.source((*keys, "source"), entry.source or model)
        if entry.revision is None:
            return source
        if source.revision not in (None, entry.revision):
            raise self.fail((*keys, "revision"), f"revision and source of {model} name different revisions; keep one.")
        return source.model_copy(update={"revision": entry.revision})

    def tier(self, keys: KeyPath, entry: Entry, defaults: EntryDefaults, tiers: Mapping[str, Tier]) -> str | None:
        """Return a model's tier, or the default one: one of the file, and large enough."""
        tier = entry.tier or defaults.tier
        if tier is None:
            return None
        if tier not in tiers:
            raise self.unknown_tier((*keys, "tier"), tier, tiers)
        # Over several GPUs it is what they have together.
        if entry.device_map is None and (entry.min_vram_gb or 0) > tiers[tier].vram_gb:
            text = f"min_vram_gb {entry.min_vram_gb:g} is more than the {tiers[tier].vram_gb} of tier {tier}"
            raise self.fail((*keys, "min_vram_gb"), f"{text}; choose a larger tier.")
        return tier

    def check_limits(self, keys: KeyPath, limits: Mapping[str, float]) -> None:
        """Check that limits have known names and are whole numbers from 1 up."""
        for name, value in limits.items():
            limit_path = (*keys, "limits", name)
            if name not in LIMIT_KEYS:
                raise self.fail(limit_path, f"unknown limit {name}; the limits are {', '.join(LIMIT_KEYS)}.")
            if value < 1 or value != int(value):
                raise self.fail(limit_path, f"limits.{name} must be a whole number from 1 up; {value:g} was written.")

    def check_precision(self, keys: KeyPath, entry: Entry) -> None:
        """Check that a precision in which a model computes is not another one than its dtype."""
        dtype = DTYPES.get(entry.precision) if entry.precision else None
        if dtype is not None and entry.dtype not in (None, dtype):
            text = (
                f"precision {entry.precision} computes in {dtype}, and dtype says {entry.dtype}; keep one of the two."
            )
            raise self.fail((*keys, "precision"), text)

    def check_device_map(self, keys: KeyPath, entry: Entry) -> None:
        """Check that a map of components to GPUs spreads them, and leaves the denoiser on the first one."""
        wanted = entry.device_map
        if wanted is None or wanted == "balanced":
            return
        if not any(wanted.values()):
            text = "device_map puts nothing on another GPU than 0; name one from 1 on for some component, or remove it."
            raise self.fail(keys, text)
        for name in DENOISERS:
            if number := wanted.get(name):
                text = f"device_map must leave {name} on GPU 0, where latents and adapters are; {number} was written: "
                raise self.fail((*keys, name), f"{text}put it on 0, and say in CUDA_VISIBLE_DEVICES which GPU that is.")

    def check_context_parallel(self, keys: KeyPath, entry: Entry) -> None:
        """Check that nothing else is said of a model which goes with one process on one GPU only."""
        if entry.context_parallel is None:
            return
        reduced = entry.precision not in (None, "auto", *DTYPES)
        others = {"device_map": entry.device_map, "lightning": entry.lightning, "precision": reduced or None}
        for name, value in others.items():
            if value is not None:
                raise self.fail(keys, f"context_parallel does not go with {name}; remove one of the two.")

    def check_family(self, keys: KeyPath, model: str, entry: Entry) -> None:
        """Check that the declared architecture and tasks are in the table."""
        if len(set(entry.tasks)) < len(entry.tasks):
            raise self.fail((*keys, "tasks"), f"tasks of {model} names a task twice; remove one.")
        if entry.architecture is None:
            return
        rows = {row.id: row for row in architectures.ARCHITECTURES}
        row = rows.get(entry.architecture)
        if row is None:
            nearest = difflib.get_close_matches(entry.architecture, rows, n=1, cutoff=0.3) or sorted(rows)
            text = f"architecture {entry.architecture!r} is not known; did you mean {nearest[0]}?"
            raise self.fail((*keys, "architecture"), text)
        for index, task in enumerate(entry.tasks):
            if task not in row.pipelines and entry.pipeline is None:
                text = f"{row.title} has no {task}; its tasks are {', '.join(row.pipelines)}, or declare a pipeline."
                raise self.fail((*keys, "tasks", index), text)

    def check_other(self, keys: KeyPath, name: str, model: str, owners: Mapping[str, str]) -> None:
        """Check that what an entry names as its fallback, its upscaler or its refiner is another model of this file."""
        owner = owners.get(name.casefold())
        if owner is None:
            hits = difflib.get_close_matches(name.casefold(), owners, n=1, cutoff=0.3) or sorted(owners)
            raise self.fail(keys, f"{keys[-1]} {name} is no model of this file; did you mean {owners[hits[0]]}?")
        if owner == model:
            raise self.fail(keys, f"{model} cannot be its own {keys[-1]}; name another model.")

    def source(self, keys: KeyPath, text: str) -> ModelSource:
        """Parse a reference into a source; a relative file starts from the folder of this registry."""
        try:
            source = self.parse_source(text)
        except (WorkerError, ValueError) as error:
            message = error.message if isinstance(error, WorkerError) else str(error).splitlines()[0]
            raise self.fail(keys, f"{text[:128]} is not a model reference: {message}") from error
        if source.is_local:
            return source.model_copy(update={"locator": str(self.beside(source.locator))})
        return source

    def adapter(self, keys: KeyPath, text: str) -> str:
        """Check an adapter's reference and return it, absolute if it is a file."""
        source = self.source(keys, text)
        return source.reference if source.is_local else text

    def names_in(self, keys: KeyPath, path: str) -> tuple[str, ...]:
        """Return the lines of a text file beside this one."""
        try:
            text = self.beside(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise self.fail(keys, f"{path} cannot be read as UTF-8 text; check the path.") from None
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def beside(self, path: str) -> Path:
        """Return `path` itself when absolute, else below the folder of this registry."""
        return (self.path.resolve().parent / path).resolve()

    def overridden(self, tiers: Mapping[str, Tier], overrides: Mapping[str, str]) -> dict[str, Tier]:
        """Return the tiers with the operator's overrides on top."""
        by_name = {re.sub(r"[^A-Z0-9]", "_", name.upper()): name for name in tiers}
        result = dict(tiers)
        for variable, value in sorted(overrides.items()):
            match = _OVERRIDE.fullmatch(variable)
            if match is None or variable in _FOREIGN:
                continue
            name = by_name.get(match["tier"])
            if name is None:
                names = ", ".join(by_name) or "none"
                raise self.fail(("tiers",), f"{variable} names no tier of this file; the tiers are {names}.")
            setting = _SETTINGS[match["setting"]]
            if not re.fullmatch(r"[0-9]{1,9}", value.strip()):
                raise self.fail(("tiers", name), f"{variable} must be a whole number; {value[:32]!r} was set.")
            data = result[name].model_dump() | {setting: int(value)}
            try:
                result[name] = Tier.model_validate(data)
            except ValidationError as error:
                raise self.fail(("tiers", name), f"{variable} {reason_of(error)}; {value.strip()} was set.") from error
        return result

    def unknown_tier(self, keys: KeyPath, tier: str, tiers: Mapping[str, Tier]) -> FileError:
        """Return the error for a tier that the file does not define."""
        return self.fail(keys, f"tier {tier} is not defined; the tiers are {', '.join(tiers) or 'none'}.")
