"""The scheduler classes of diffusers that can sample a model, and the options of each.

The weights' kind of noise decides which of them fit a model: the noise of a diffusion, a flow, or noise in EDM's terms.
A class that stands in no row fits only the models that bring it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from pydantic import JsonValue

Noise = Literal["diffusion", "flow", "edm", "cogvideo"]
Options = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class SchedulerClass:
    """One class. `schedules` holds its options for each schedule by name; `lists` are those that a caller may give.

    Both stand apart for flows, which some classes also sample. `zero_snr` is true if it can begin without any signal,
    as models that were trained down to zero signal need.
    """

    name: str
    noise: tuple[Noise, ...] = ("diffusion",)
    schedules: Mapping[str, Options] = field(default_factory=dict)
    flow_schedules: Mapping[str, Options] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    flow_lists: frozenset[str] = frozenset()
    options: Options = field(default_factory=dict)  # always laid over the config
    zero_snr: bool = False
    shifts: bool = False  # true if `shift` can be given for a flow
    package: str = ""  # that diffusers needs for it, by its name in an index, which is its import name too

    def schedules_of(self, noise: Noise | None) -> Mapping[str, Options]:
        """Return the schedules by name for a model of this kind of noise; none where the kind is unknown."""
        return {} if noise is None else self.flow_schedules if noise == "flow" else self.schedules

    def lists_of(self, noise: Noise | None) -> frozenset[str]:
        """Return those of `timesteps` and `sigmas` that may be given for a model of this kind."""
        return self.flow_lists if noise == "flow" else self.lists


_PLAIN: Options = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_LINSPACE: Options = {**_PLAIN, "timestep_spacing": "linspace"}
_TRAILING: Options = {**_PLAIN, "timestep_spacing": "trailing"}
_LEADING: Options = {**_PLAIN, "timestep_spacing": "leading", "steps_offset": 1}

# Timesteps evenly from 999 to 0, as the UIs' `normal` has them. `sgm_uniform` ends a step before 0; trailing spacing,
# which diffusers documents for it, is less than one of the thousand timesteps away.
_EVEN: Mapping[str, Options] = {
    "normal": _LINSPACE,
    "simple": _TRAILING,
    "sgm_uniform": _TRAILING,
    "ddim_uniform": _LEADING,
}
# These solvers leave the last of one timestep more away: their linspace is the UIs' `sgm_uniform`.
_SOLVED: Mapping[str, Options] = {"simple": _TRAILING, "sgm_uniform": _LINSPACE}
_SOLVED_ONLY: Mapping[str, Options] = {"sgm_uniform": _PLAIN}  # it has no other spacing
# From the noisiest sigma to the cleanest, as the UIs do; other spacings would begin below the noisiest.
_CURVED: Mapping[str, Options] = {
    "karras": {**_LINSPACE, "use_karras_sigmas": True},
    "exponential": {**_LINSPACE, "use_exponential_sigmas": True},
    "beta": {**_LINSPACE, "use_beta_sigmas": True},
}
_BENT: Mapping[str, Options] = {
    "karras": {**_PLAIN, "use_karras_sigmas": True},
    "exponential": {**_PLAIN, "use_exponential_sigmas": True},
    "beta": {**_PLAIN, "use_beta_sigmas": True},
}
_BOTH: tuple[Noise, ...] = ("diffusion", "flow")
_TIMESTEPS, _SIGMAS = frozenset({"timesteps"}), frozenset({"sigmas"})
_PRK: Options = {"skip_prk_steps": True}  # PLMS, as Stable Diffusion's own config has it: the others need a warm-up
_MULTISTEP: Mapping[str, Options] = {**_SOLVED, **_CURVED}

_ROWS: tuple[SchedulerClass, ...] = (
    SchedulerClass("DDIMScheduler", schedules=_EVEN, zero_snr=True),
    SchedulerClass("DDIMParallelScheduler", schedules=_EVEN, zero_snr=True),
    SchedulerClass("DDPMScheduler", schedules=_EVEN, lists=_TIMESTEPS, zero_snr=True),
    SchedulerClass("DDPMParallelScheduler", schedules=_EVEN, lists=_TIMESTEPS, zero_snr=True),
    SchedulerClass("PNDMScheduler", options=_PRK),
    SchedulerClass("LCMScheduler", lists=_TIMESTEPS, zero_snr=True),
    SchedulerClass("TCDScheduler", lists=_TIMESTEPS, zero_snr=True),
    SchedulerClass("EulerDiscreteScheduler", schedules={**_EVEN, **_CURVED}, lists=_TIMESTEPS | _SIGMAS, zero_snr=True),
    SchedulerClass("EulerAncestralDiscreteScheduler", schedules=_EVEN, zero_snr=True),
    SchedulerClass("LMSDiscreteScheduler", schedules={**_EVEN, **_CURVED}, package="scipy"),
    SchedulerClass("HeunDiscreteScheduler", schedules={**_EVEN, **_CURVED}, lists=_TIMESTEPS),
    SchedulerClass("KDPM2DiscreteScheduler", schedules={**_EVEN, **_CURVED}),
    SchedulerClass("KDPM2AncestralDiscreteScheduler", schedules={**_EVEN, **_CURVED}),
    SchedulerClass("DPMSolverSDEScheduler", schedules={**_EVEN, **_CURVED}, package="torchsde"),
    SchedulerClass(
        "DPMSolverMultistepScheduler", _BOTH, schedules=_MULTISTEP, lists=_TIMESTEPS, zero_snr=True, shifts=True
    ),
    SchedulerClass(
        "DPMSolverSinglestepScheduler", _BOTH, schedules={**_SOLVED_ONLY, **_BENT}, lists=_TIMESTEPS, shifts=True
    ),
    SchedulerClass("DEISMultistepScheduler", _BOTH, schedules=_MULTISTEP, shifts=True),
    SchedulerClass("SASolverScheduler", _BOTH, schedules=_MULTISTEP, shifts=True),
    SchedulerClass(
        "UniPCMultistepScheduler", _BOTH, schedules=_MULTISTEP, flow_lists=_SIGMAS, zero_snr=True, shifts=True
    ),
    SchedulerClass(
        "FlowMatchEulerDiscreteScheduler",
        ("flow",),
        flow_schedules=_BENT,
        flow_lists=_TIMESTEPS | _SIGMAS,
        shifts=True,
    ),
    SchedulerClass("FlowMatchHeunDiscreteScheduler", ("flow",), shifts=True),
    SchedulerClass(
        "FlowMatchLCMScheduler", ("flow",), flow_schedules=_BENT, flow_lists=_TIMESTEPS | _SIGMAS, shifts=True
    ),
    SchedulerClass("LTXEulerAncestralRFScheduler", ("flow",), flow_lists=_SIGMAS),
    SchedulerClass(
        "EDMEulerScheduler",
        ("edm",),
        schedules={"karras": {"sigma_schedule": "karras"}, "exponential": {"sigma_schedule": "exponential"}},
        lists=_SIGMAS,
    ),
    SchedulerClass(
        "EDMDPMSolverMultistepScheduler",
        ("edm",),
        schedules={"karras": {"sigma_schedule": "karras"}, "exponential": {"sigma_schedule": "exponential"}},
    ),
    SchedulerClass("CogVideoXDDIMScheduler", ("cogvideo",), zero_snr=True),
    SchedulerClass("CogVideoXDPMScheduler", ("cogvideo",), zero_snr=True),
)
CLASSES: Mapping[str, SchedulerClass] = MappingProxyType({row.name: row for row in _ROWS})
# Lists that classes of no row may be given: only the models that bring such a class generate with it.
_LISTS_OF_OTHERS: Mapping[str, frozenset[str]] = {
    "CMStochasticIterativeScheduler": _TIMESTEPS,
    "DDPMWuerstchenScheduler": _TIMESTEPS,
    "FlowMapEulerDiscreteScheduler": _TIMESTEPS | _SIGMAS,
    "HeliosDMDScheduler": _SIGMAS,
    "HeliosScheduler": _SIGMAS,
    "MiniMaxH3Scheduler": _SIGMAS,
    "PiflowScheduler": _TIMESTEPS | _SIGMAS,
    "SCMScheduler": _TIMESTEPS,
}
SCHEDULES = ("normal", "karras", "exponential", "beta", "sgm_uniform", "simple", "ddim_uniform")


def lists_of(cls: str, noise: Noise | None) -> frozenset[str]:
    """Return those of `timesteps` and `sigmas` that a class, in a row or not, takes for a model of this kind."""
    return CLASSES[cls].lists_of(noise) if cls in CLASSES else _LISTS_OF_OTHERS.get(cls, frozenset())
