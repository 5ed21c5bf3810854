"""Write docs/schedulers.md: the names of samplers and schedules, and which of them each family takes.

    python -m tools.schedulers_page

Run it after a change to one of the tables; a test compares the page with them.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.call import Model
from worker.catalog.interface.sampling import Fit, fit_of
from worker.catalog.samplers import SAMPLERS, UNSERVED, UNSERVED_SCHEDULES
from worker.catalog.schedulers import CLASSES, SCHEDULES
from worker.core.model import ModelSource, ModelSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "schedulers.md"

_HEAD = """# Schedulers: how a model is sampled

Written by `python -m tools.schedulers_page` from the tables in `worker/catalog`; a test compares the two.

Three fields say how a model is sampled; left out, each is the model's own. What a result's `parameters` say of them can
be sent as it is.

- `scheduler`: how the steps are made. A diffusers class, with or without "Scheduler" at its end, or a name from the
  table below; case, spaces, `-` and `_` do not matter. A schedule may follow it: `DPM++ 2M Karras`, `euler_beta`.
- `schedule`: where the steps are, by the same names. A scheduler takes those of its row.
- `shift`: for models that predict a flow, how far their steps are moved towards noise. It replaces the model's own
  number, and a shift that would follow the image's size.

`timesteps` or `sigmas` give the steps one by one, falling, where the pipeline and the scheduler take them. What does
not fit a model is refused before anything is loaded, with what does. A model keeps its own noise schedule, prediction
type and zero-SNR betas under every scheduler; one that was trained down to zero signal takes only those that can begin
there. Noise that a scheduler adds is drawn from each image's own seed.
"""
_NAMES = """
## Names

The class depends on what a model's weights predict: the noise of a diffusion, a flow, or noise in EDM's terms. A dash
means that diffusers has none. InvokeAI's `_k` behind a name is `karras`; Replicate's `KarrasDPM` is `dpmpp_2m` with it.
`uni_pc` is UniPC's B1, as A1111 and ComfyUI mean it; the last step, in which diffusers' own B1 divides by zero, is
drawn as B2 draws it, which is the same there. `uni_pc_bh2` is B2.
"""
_SCHEDULES = """
## Classes and their schedules

`normal`, `simple`, `sgm_uniform` and `ddim_uniform` are where ComfyUI has them, to a timestep in a thousand
(`ddim_uniform` where the number of steps divides 1,000); `karras`, `exponential` and `beta` run over the model's whole
range of noise. `zero SNR`: fits models that were trained down to zero signal.
"""
_FAMILIES = """
## What each family takes

For text to image or video, with the scheduler that its models bring. Which classes a pipeline runs with was measured
for every pipeline of diffusers (`python -m tests.zoo.schedulers`); a model that brings another scheduler, or a pipeline
that was not measured, keeps that one.
"""
_UNSERVED = """
## What diffusers does not have

These are refused with the nearest sampler or schedule as a hint; nothing is replaced silently. Align Your Steps is a
list: send its `timesteps`, such as `[999, 850, 736, 645, 545, 455, 343, 233, 124, 24]` for Stable Diffusion 1.
"""


def page() -> str:
    """The whole text of docs/schedulers.md."""
    parts = [
        _HEAD,
        _NAMES,
        _table(("name", "also", "diffusion", "flow", "EDM", "CogVideoX"), _names()),
        _SCHEDULES,
        _table(("class", "schedules", "of flows", "lists", "zero SNR", "needs"), _classes()),
        _FAMILIES,
        _table(("families", "samplers", "schedules", "shift"), _families()),
        _UNSERVED,
        _table(("name", "nearest"), [[f"`{name}`", f"`{near}`"] for name, near in UNSERVED.items()]),
        "\n",
        _table(("schedule", "nearest"), [[f"`{name}`", f"`{near}`"] for name, near in UNSERVED_SCHEDULES.items()]),
    ]
    return "".join(parts)


def _names() -> Iterator[Sequence[str]]:
    for sampler in SAMPLERS:
        classes = [_short(sampler.classes.get(kind)) for kind in ("diffusion", "flow", "edm", "cogvideo")]
        said = f" with {', '.join(f'{key} {value}' for key, value in sampler.options.items())}"
        classes = [cls + said if cls != "–" and sampler.options else cls for cls in classes]
        yield f"`{sampler.name}`", ", ".join(f"`{name}`" for name in sampler.aliases) or "–", *classes


def _classes() -> Iterator[Sequence[str]]:
    for row in CLASSES.values():
        lists = {*row.lists, *row.flow_lists}
        yield (
            f"`{row.name}`",
            _listed(name for name in SCHEDULES if name in row.schedules),
            _listed(name for name in SCHEDULES if name in row.flow_schedules),
            _listed(sorted(lists)),
            "yes" if row.zero_snr else "–",
            row.package or "–",
        )


def _families() -> Iterator[Sequence[str]]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in ARCHITECTURES:
        spec = ModelSpec(id=row.id, source=ModelSource(scheme="hf", locator=f"org/{row.id}"), architecture=row.id)
        fit = fit_of(Model.declared(spec).call(next(iter(row.pipelines))))
        groups.setdefault((_samplers(fit), _listed(fit.schedules), "yes" if fit.shifting else "–"), []).append(row.id)
    for outcome, families in groups.items():
        yield ", ".join(families), *outcome


def _samplers(fit: Fit) -> str:
    named = [sampler.name for sampler in SAMPLERS if fit.class_of(sampler)]
    covered = {fit.class_of(sampler) for sampler in SAMPLERS}
    return ", ".join([*named, *(f"`{cls}`" for cls in fit.classes if cls not in covered)]) or "their own"


def _short(cls: str | None) -> str:
    return f"`{cls.removesuffix('Scheduler')}`" if cls else "–"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
