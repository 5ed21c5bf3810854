"""Write docs/models.md: what the tables of worker/catalog say is recognised, run and refused.

    python -m tools.models_page

Run it after a change to one of the tables; a test compares the page with them.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from worker.catalog import coverage
from worker.catalog.base_models import CIVITAI_BASES
from worker.catalog.capabilities import PART_PACKAGES, STORAGES
from worker.catalog.classes.modular import modular_pipelines, modular_refusal
from worker.catalog.classes.signatures import known_pipelines
from worker.catalog.interface.controls import MAX_CONTROLS
from worker.catalog.pipelines.controlled import CONTROLLED
from worker.catalog.pipelines.table import PIPELINES

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "models.md"

_HEAD = """# Models: what runs, and why the rest does not

Written by `python -m tools.models_page` from the tables in `worker/catalog`; a test compares the two. How a model is
named in a request stands in [api.md](api.md), what was really run where in [verified.md](verified.md).

Any repository that a pipeline class of the installed diffusers can load runs, whether its family has a row below or
not: a row adds defaults, bounds, the classes of further tasks, and single files. `{"action": "inspect", "model": …}`
says what a file or repository is, how sure that is, and why; nothing but headers and JSON is fetched for it.

Every tensor of a repository is accounted for. One that is missing, left over or of another shape than the config says
is `corrupt_file`, naming the part and the tensor. Names that a wrapper left are read as what they mean: `module.`,
`_orig_mod.`, `base_model.model.`, `.base_layer.`. The other towers of a larger model, beside a text encoder say, are
left out.
"""
_FAMILIES = """
## Families

Forms that are recognised: *diffusers* is a repository, *checkpoint* one file with the whole model, *denoiser* a
UNet or transformer alone, which its base repository completes, *gguf* the same packed. Layouts are the tensor names
of such a file: *diffusers* as diffusers saves them, *original* as the authors and ComfyUI publish them, bare or under
the prefixes of tools. A test reads every one listed here in full size; another layout is refused before its download.
Sizes that differ within a family (layers, widths, input channels) follow from the tensors.

A twin's files look like its sibling's: what its page declares, or `architecture` in models.yaml, tells them apart.
Variants change the defaults for steps and guidance.
"""
_CIVITAI = """
## What CivitAI calls them

A page's base model decides only what the header cannot show. Strings that are not in this list change nothing.
"""
_STORAGES = """
## How weights are stored

Plain float32, float16 and bfloat16 always; pickles (`.ckpt`, `.pt`, `.bin`) only where the operator sets
`ALLOW_PICKLES`. Plain weights, and fp8 ones that are made plain, can be held in fewer bits in memory
([precision](performance.md#precision)).
"""
_LORAS = """
## LoRAs

Every algorithm in every spelling below, in any mixture, on every family whose pipeline has a UNet or a transformer.
Each is checked: fewer than 95 % of its layers placed is an error that names some that were not.
"""
_CONTROL = """
## Control

What `controlnets` of a request can hold, by the class that draws without them (`inspect` tells it). In diffusers'
folders all of them, as one file in its authors' layout or diffusers' own all but ControlNet-XS, whose shapes do not
tell how it is put together; Z-Image's, which are published as nothing else, in versions 1, 2.0, 2.1 and 2.1-lite.
Stable Diffusion's and SDXL's also as control LoRAs, one file that holds what they have beyond their base's UNet.
XLabs' ControlNets for FLUX.1 are refused by name.
"""
_COMPANIONS = """
## Files that are no model by themselves

Recognised from their headers, so that one in the wrong place is refused by its name. LoRAs, ControlNets, T2I-Adapters,
IP-Adapters, textual inversions, hypernetworks, VAEs and whole components are used, each where a request or models.yaml
names it; upscalers but for face restorers run by themselves (task `upscaling`) and as the last step of a job
(`upscale`); motion modules and image encoders come with what needs them.
"""
_MODULAR = """
## Modular repositories

A repository with a `modular_model_index.json` and no `model_index.json` is put together from diffusers' own blocks,
if its class is taken below. The parts that it uses have to lie in it, each in its own folder: one that the index takes
from another repository, or one that every call needs and it lacks, is refused by name, and so are other blocks and
code. A task that only a missing part makes possible is not offered, and where the model that rewrites prompts is
missing (FLUX.3's upsampler, say), prompts are read as they are. Its fields are the inputs of its blocks, its tasks
their workflows. `guidance_scale` goes to its guiders, for that job alone. Progress, previews, cancel and offloading are
as with any other model.

In a request it takes LoRAs where diffusers has a LoRA loader for its class, and else no adapters; in models.yaml none,
and no other VAE. Several images are as many calls, one for each seed. Sound that a class makes beside its videos is
left aside. The classes are read from the installed diffusers; a tiny model of each one that is taken
was drawn with ([verified.md](verified.md)).
"""
_REFUSED = """
## Refused by name

Always before a download, as `unsupported_model`, with the sentence of the right column.
"""


def page() -> str:
    """The whole text of docs/models.md."""
    parts = [
        _HEAD,
        _FAMILIES,
        _table(
            ("architecture", "family", "tasks", "forms", "layouts", "variants", "twin of", "ControlNets recognised"),
            _families(),
        ),
        _CIVITAI,
        _table(("base model", "architecture", "variant"), _civitai()),
        _STORAGES,
        _table(("stored as", "what happens"), _storages()),
        _LORAS,
        _table(("", ""), _loras()),
        _CONTROL,
        _table(("draws without", "control", "draws with it", "several"), _controls()),
        _COMPANIONS,
        _table(("kind", "what", "for"), _companions()),
        _MODULAR,
        _table(("class", "taken"), _modular()),
        _REFUSED,
        _table(("what", "why"), _refusals()),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _families() -> Iterable[Sequence[str]]:
    for row in coverage.families():
        nets = "; ".join(row.controlnets).replace("a ControlNet", "ControlNet")
        tasks = ", ".join(task.value for task in row.tasks)
        yield (
            f"`{row.architecture}`",
            row.title,
            tasks,
            ", ".join(row.files),
            ", ".join(row.layouts) if row.files[1:] else "",
            ", ".join(row.variants),
            row.twin or "",
            nets,
        )


def _civitai() -> Iterable[Sequence[str]]:
    for name, base in CIVITAI_BASES.items():
        if not base.refused:
            yield name, f"`{base.architecture}`" if base.architecture else "", base.variant or ""


def _storages() -> Iterable[Sequence[str]]:
    for row in STORAGES.values():
        needs = f"read with the package `{row.distribution}`" if row.distribution else ""
        told = f"refused: {row.refusal}" if row.refusal else "; ".join(filter(None, (row.how, needs)))
        yield row.title, told


def _loras() -> Iterable[Sequence[str]]:
    algorithms, dialects = coverage.lora_spellings()
    bases = [row.architecture for row in coverage.families() if row.loras_recognised and not row.twin]
    yield "algorithms", ", ".join(algorithms)
    yield "spellings", ", ".join(dialects)
    yield "bases told by the keys", ", ".join(dict.fromkeys(bases))


def _controls() -> Iterable[Sequence[str]]:
    several = {"any": f"up to {MAX_CONTROLS}", "same": f"up to {MAX_CONTROLS} images for one", "one": "no"}
    for row in CONTROLLED:
        kind = f"`{row.component}`{' for inpainting' if row.inpaints else ''}"
        yield f"`{row.plain}`", kind, f"`{row.pipeline}`", several[row.several]


def _companions() -> Iterable[Sequence[str]]:
    rows = sorted(coverage.kinds(), key=lambda row: row.kind.value)
    for kind, group in groupby(rows, key=lambda row: row.kind.value):
        for row in group:
            yield kind, row.what, row.architecture or ""


def _modular() -> Iterable[Sequence[str]]:
    for name in sorted(modular_pipelines()):
        reason = modular_refusal(name)
        yield f"`{name}`", f"no: it {reason}" if reason else "yes"


def _refusals() -> Iterable[Sequence[str]]:
    for row in coverage.refusals():
        if not row.what.startswith("CivitAI's"):
            yield row.what.replace("|", ", "), row.why
    by_reason = sorted((base.refused, name) for name, base in CIVITAI_BASES.items() if base.refused)
    for reason, names in groupby(by_reason, key=lambda pair: pair[0]):
        yield "CivitAI's " + ", ".join(name for _, name in names), reason
    rows = sorted(PIPELINES.items())
    for name, reason in ((name, row.refusal) for name, row in rows if row.refusal):
        yield f"`{name}`", reason
    for name, reason in ((name, row.broken) for name, row in rows if row.broken):
        yield f"`{name}`", f"is broken in the installed libraries: {reason}"
    for part, (_, distribution) in sorted(PART_PACKAGES.items()):
        yield f"repositories with a `{part}`", f"need the Python package {distribution} (the GPU image has torchvision)"
    for name, package in ((name, row.package) for name, row in rows if row.package):
        if package.distribution not in _installed():
            yield f"`{name}`", f"needs the Python package {package.distribution}, which does not come with the worker"


def _installed() -> set[str]:
    """What comes with the worker everywhere."""
    files = (PROJECT / name for name in ("requirements.txt", "requirements-spandrel.txt"))
    return {line.partition("==")[0] for file in files for line in file.read_text().splitlines() if "==" in line}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(
        f"{PAGE.name}: {len(list(coverage.families()))} families, {len(known_pipelines())} classes of diffusers known"
    )
