"""The names that people use for samplers and schedules: those of A1111, ComfyUI, InvokeAI, Replicate and diffusers.

A sampler is a way to step, and a schedule places the steps; many names hold both ("DPM++ 2M Karras"). Names that
diffusers does not serve stand here too, each with the nearest one that it serves: they are refused, never replaced.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from worker.catalog.schedulers import CLASSES, SCHEDULES, Noise, Options


@dataclass(frozen=True, slots=True)
class Sampler:
    """One sampler under its ComfyUI name. `classes` holds its class for each kind of noise that it serves."""

    name: str
    classes: Mapping[Noise, str]
    aliases: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """The meaning of a name: a sampler or a class, and a schedule where it names one."""

    sampler: Sampler | None = None
    cls: str | None = None
    schedule: str | None = None


_SDE: Options = {"algorithm_type": "sde-dpmsolver++"}
_MULTISTEP: Mapping[Noise, str] = {"diffusion": "DPMSolverMultistepScheduler", "flow": "DPMSolverMultistepScheduler"}
_UNIPC: Mapping[Noise, str] = {"diffusion": "UniPCMultistepScheduler", "flow": "UniPCMultistepScheduler"}

SAMPLERS: tuple[Sampler, ...] = (
    Sampler(
        "euler",
        {
            "diffusion": "EulerDiscreteScheduler",
            "flow": "FlowMatchEulerDiscreteScheduler",
            "edm": "EDMEulerScheduler",
        },
        ("k_euler",),
    ),
    Sampler(
        "euler_ancestral",
        {"diffusion": "EulerAncestralDiscreteScheduler", "flow": "LTXEulerAncestralRFScheduler"},
        ("euler a", "k_euler_a", "k_euler_ancestral"),
    ),
    Sampler(
        "heun",
        {"diffusion": "HeunDiscreteScheduler", "flow": "FlowMatchHeunDiscreteScheduler"},
        ("k_heun",),
    ),
    Sampler("dpm_2", {"diffusion": "KDPM2DiscreteScheduler"}, ("dpm2", "k_dpm_2", "kdpm_2")),
    Sampler(
        "dpm_2_ancestral",
        {"diffusion": "KDPM2AncestralDiscreteScheduler"},
        ("dpm2 a", "k_dpm_2_a", "k_dpm_2_ancestral", "kdpm_2_a"),
    ),
    Sampler("lms", {"diffusion": "LMSDiscreteScheduler"}, ("k_lms",)),
    Sampler("ddim", {"diffusion": "DDIMScheduler", "cogvideo": "CogVideoXDDIMScheduler"}),
    Sampler("ddpm", {"diffusion": "DDPMScheduler"}),
    Sampler("plms", {"diffusion": "PNDMScheduler"}),
    Sampler("lcm", {"diffusion": "LCMScheduler", "flow": "FlowMatchLCMScheduler"}),
    Sampler("tcd", {"diffusion": "TCDScheduler"}),
    Sampler("deis", {"diffusion": "DEISMultistepScheduler", "flow": "DEISMultistepScheduler"}),
    Sampler("sa_solver", {"diffusion": "SASolverScheduler", "flow": "SASolverScheduler"}),
    Sampler(
        "dpmpp_2m",
        {**_MULTISTEP, "edm": "EDMDPMSolverMultistepScheduler", "cogvideo": "CogVideoXDPMScheduler"},
        ("dpm++ 2m", "k_dpmpp_2m"),
    ),
    Sampler("dpmpp_2m_sde", _MULTISTEP, ("dpm++ 2m sde", "dpmpp_2m_sde_gpu"), _SDE),
    Sampler(
        "dpmpp_2m_sde_heun",
        _MULTISTEP,
        ("dpm++ 2m sde heun", "dpmpp_2m_sde_heun_gpu"),
        {**_SDE, "solver_type": "heun"},
    ),
    Sampler("dpmpp_3m_sde", _MULTISTEP, ("dpm++ 3m sde", "dpmpp_3m_sde_gpu"), {**_SDE, "solver_order": 3}),
    Sampler("dpmpp_3m", _MULTISTEP, ("dpm++ 3m",), {"solver_order": 3}),
    Sampler(
        "dpmpp_2s",
        {"diffusion": "DPMSolverSinglestepScheduler", "flow": "DPMSolverSinglestepScheduler"},
        ("dpm++ 2s",),
    ),
    Sampler("dpmpp_sde", {"diffusion": "DPMSolverSDEScheduler"}, ("dpm++ sde", "k_dpmpp_sde", "dpmpp_sde_gpu")),
    Sampler("uni_pc", _UNIPC, ("uni_pc_bh1",), {"solver_type": "bh1"}),  # as UIs have it
    Sampler("uni_pc_bh2", _UNIPC, (), {"solver_type": "bh2"}),
)

# Names that mean a sampler and a schedule of other names.
_COMPOUND: Mapping[str, tuple[str, str]] = {"karrasdpm": ("dpmpp_2m", "karras")}
# Other names of classes.
_CLASS_ALIASES: Mapping[str, str] = {
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
}
# Other names of schedules. `_k` is InvokeAI's.
_SCHEDULE_ALIASES: Mapping[str, str] = {"uniform": "normal", "k": "karras"}
# Names for the model's own schedule.
AUTOMATIC = frozenset({"automatic"})

# Samplers that people name and diffusers 0.42.1 does not have -> the one that comes nearest.
UNSERVED: Mapping[str, str] = {
    "res_multistep": "dpmpp_2m",
    "res_multistep_ancestral": "dpmpp_2m_sde",
    "res_multistep_cfg_pp": "dpmpp_2m",
    "res_multistep_ancestral_cfg_pp": "dpmpp_2m_sde",
    "restart": "heun",
    "dpm_fast": "dpmpp_2m",
    "dpm_adaptive": "dpmpp_2m",
    "dpmpp_2s_ancestral": "dpmpp_2s",
    "dpm++ 2s a": "dpmpp_2s",
    "k_dpmpp_2s_ancestral": "dpmpp_2s",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s",
    "dpmpp_2m_cfg_pp": "dpmpp_2m",
    "euler_cfg_pp": "euler",
    "euler_ancestral_cfg_pp": "euler_ancestral",
    "ddim cfg++": "ddim",
    "heunpp2": "heun",
    "exp_heun_2_x0": "heun",
    "exp_heun_2_x0_sde": "dpmpp_2m_sde_heun",
    "ipndm": "deis",
    "ipndm_v": "deis",
    "gradient_estimation": "euler",
    "gradient_estimation_cfg_pp": "euler",
    "er_sde": "dpmpp_3m_sde",
    "seeds_2": "dpmpp_sde",
    "seeds_3": "dpmpp_sde",
    "sa_solver_pece": "sa_solver",
}
# Schedules that people name and diffusers does not have -> the one that comes nearest.
UNSERVED_SCHEDULES: Mapping[str, str] = {
    "polyexponential": "exponential",
    "kl_optimal": "karras",
    "linear_quadratic": "simple",
    "align_your_steps": "karras",
    "align_your_steps_gits": "karras",
    "align_your_steps_11": "karras",
    "align_your_steps_32": "karras",
    "turbo": "sgm_uniform",
}


def folded(name: str) -> str:
    """Return a name without the signs that people write differently: case, spaces, `-` and `_`."""
    return "".join(char for char in name.lower().replace("++", "pp") if char.isalnum())


def read_name(name: str) -> Named | None:
    """Read a name of a sampler, with or without a schedule; None when it is no such name."""
    named = _read_unsplit(folded(name))
    if named is not None:
        return named
    for head, schedule in _splits(name):
        named = _read_unsplit(head)
        if named is not None and named.schedule is None:
            return Named(named.sampler, named.cls, schedule)
    return None


def read_schedule(name: str) -> str | None:
    """Return the schedule of this name, or None when it is none that diffusers has."""
    return _SCHEDULES.get(folded(name))


def unserved(name: str) -> str | None:
    """Return the nearest sampler to a name for one that diffusers does not have; None for every other name."""
    heads = [folded(name), *(head for head, _ in _splits(name))]
    return next((_UNSERVED[head] for head in heads if head in _UNSERVED), None)


def unserved_schedule(name: str) -> str | None:
    """Return the nearest schedule to a name for one that diffusers does not have; None for every other name."""
    return {folded(alias): nearest for alias, nearest in UNSERVED_SCHEDULES.items()}.get(folded(name))


def names_of(sampler: Sampler) -> tuple[str, ...]:
    """Return the sampler's name and its aliases."""
    return (sampler.name, *sampler.aliases)


def _read_unsplit(head: str) -> Named | None:
    if head in _COMPOUND:
        sampler, schedule = _COMPOUND[head]
        return Named(_SAMPLERS[folded(sampler)], None, schedule)
    if head in _SAMPLERS:  # before the classes: "ddim" is whatever class that is for the model
        return Named(_SAMPLERS[head])
    return Named(cls=_CLASS_NAMES[head]) if head in _CLASS_NAMES else None


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield the text before a schedule's name, for each schedule that `name` ends with; the longest schedule first."""
    text = folded(name)
    for ending in sorted(_SCHEDULES, key=len, reverse=True):
        # A letter alone may end any word: it has to stand apart.
        is_word = len(ending) > 1 or name.lower().rstrip().endswith(("_" + ending, " " + ending))
        if text.endswith(ending) and len(text) > len(ending) and is_word:
            yield text.removesuffix(ending), _SCHEDULES[ending]


_SCHEDULES = {folded(name): name for name in SCHEDULES} | dict(_SCHEDULE_ALIASES)
_SAMPLERS = {folded(name): sampler for sampler in SAMPLERS for name in names_of(sampler)}
_CLASS_NAMES = {folded(short): name for name in CLASSES for short in (name, name.removesuffix("Scheduler"))}
_CLASS_NAMES |= {folded(alias): name for alias, name in _CLASS_ALIASES.items()}
_UNSERVED = {folded(name): near for name, near in UNSERVED.items()}
