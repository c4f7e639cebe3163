"""What samplers and schedules are called: by diffusers, by A1111, by ComfyUI. Recorded are the keys of the registry."""

import re
from typing import Any, NamedTuple

from sdjax import extensions
from sdjax.diffusion.samplers.registry import SAMPLERS
from sdjax.diffusion.scheduler_classes import same_class
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.schedules import SCHEDULES

# A1111's labels. Where it has none the label is made here, for the text that goes into images.
A1111_SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "pndm": "PNDM",
    "plms": "PLMS",
    "lcm": "LCM",
    "tcd": "TCD",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "restart": "Restart",
    "dpm_fast": "DPM fast",
    "dpm_solver_2m": "DPM 2M",
    "dpm_solver_2m_sde": "DPM 2M SDE",
    "dpm_solver_2s": "DPM 2S",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "deis": "DEIS",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC bh2",
}
A1111_SCHEDULES = {
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "beta": "Beta",
    "lu": "Lu",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "align_your_steps": "Align Your Steps",
    "kl_optimal": "KL Optimal",
}

# diffusers' classes; where a class is several samplers, its config decides (`own_sampler`).
CLASSES = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "plms",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm_2",
    "KDPM2AncestralDiscreteScheduler": "dpm_2_ancestral",
    "LMSDiscreteScheduler": "lms",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "uni_pc_bh2",
}

# ComfyUI's names, A1111's and k-diffusion's other ones; the registry's own names are mostly ComfyUI's.
_OTHER_SAMPLERS = {
    "ddim_uniform": "ddim",
    "k_euler": "euler",
    "k_euler_a": "euler_ancestral",
    "k_euler_ancestral": "euler_ancestral",
    "k_lms": "lms",
    "k_heun": "heun",
    "k_dpm_2": "dpm_2",
    "k_dpm_2_a": "dpm_2_ancestral",
    "k_dpm_2_ancestral": "dpm_2_ancestral",
    "k_dpmpp_2s_a": "dpmpp_2s_ancestral",
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpmpp_sde": "dpmpp_sde",
    "k_dpmpp_2m_sde": "dpmpp_2m_sde",
    "k_dpmpp_3m_sde": "dpmpp_3m_sde",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde",
    "dpmsolver++": "dpmpp_2m",
    "dpmsolver": "dpm_solver_2m",
    "sde-dpmsolver++": "dpmpp_2m_sde",
    "sde-dpmsolver": "dpm_solver_2m_sde",
    "k_restart": "restart",
}
_OTHER_SCHEDULES = {"normal": "uniform", "ays": "align_your_steps", "use_karras_sigmas": "karras"}
_OTHER_SCHEDULES |= {"use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta", "use_lu_lambdas": "lu"}
_AUTOMATIC = "automatic"

# Samplers that choose their steps by what the network gives, which a table written beforehand can't.
ADAPTIVE = ("dpm_adaptive", "dpmadaptive", "k_dpm_ad")


def _plain(name: str) -> str:
    """Without what spellings differ in."""
    return re.sub(r"[\s_\-]+", "", name.lower())


# Of spellings that mean two, the last stands: the registry's own.
_SAMPLERS = {
    _plain(name): key
    for names in (
        _OTHER_SAMPLERS,
        {name.removesuffix("Scheduler"): key for name, key in CLASSES.items()},
        CLASSES,
        {label: key for key, label in A1111_SAMPLERS.items()},
        {key: key for key in SAMPLERS},
    )
    for name, key in names.items()
}
_SCHEDULES = {
    _plain(name): key
    for names in (
        {key: key for key in SCHEDULES},
        {label: key for key, label in A1111_SCHEDULES.items()},
        _OTHER_SCHEDULES,
    )
    for name, key in names.items()
}


class SamplerName(NamedTuple):
    """A sampler, and the schedule if the name tells one too ("DPM++ 2M Karras")."""

    sampler: str
    schedule: str | None


def sampler_named(name: str) -> SamplerName | None:
    """Which sampler a name of any of the vocabularies means; None if none.

    A class of diffusers that is several is the usual one of Stable Diffusion's checkpoints; see `own_sampler`.
    """
    plain = _plain(name)
    if plain in _SAMPLERS:
        return SamplerName(_SAMPLERS[plain], None)
    for ending, schedule in (("karras", "karras"), ("exponential", "exponential"), ("ka", "karras")):
        if plain.endswith(ending) and plain.removesuffix(ending) in _SAMPLERS:
            return SamplerName(_SAMPLERS[plain.removesuffix(ending)], schedule)
    return SamplerName(name, None) if name in extensions.names(extensions.SAMPLERS) else None


def is_adaptive(name: str) -> bool:
    """Whether it is one of those that can't be had."""
    return _plain(name) in map(_plain, ADAPTIVE)


def schedule_named(name: str) -> str | None:
    """Which schedule a name means; None if none. "Automatic" is the checkpoint's own: the empty text."""
    if _plain(name) == _AUTOMATIC:
        return ""
    added = name if name in extensions.names(extensions.SCHEDULES) else None
    return _SCHEDULES.get(_plain(name), added)


def known_sampler_names() -> list[str]:
    """All spellings that are shown where a name is not known, the recorded ones first."""
    return [*SAMPLERS, *A1111_SAMPLERS.values(), *CLASSES]


def own_sampler(class_name: str, config: SchedulerConfig) -> str | None:
    """The sampler of a checkpoint's scheduler; None if it is none of ours."""
    class_name = same_class(class_name)
    name = CLASSES.get(class_name)
    choices: dict[str, dict[Any, str | None]] = {
        "PNDMScheduler": {False: "pndm"},
        "DPMSolverMultistepScheduler": {
            "dpmsolver": "dpm_solver_2m",
            "sde-dpmsolver++": "dpmpp_2m_sde",
            "sde-dpmsolver": "dpm_solver_2m_sde",
        },
        "DPMSolverSinglestepScheduler": {"dpmsolver": "dpm_solver_2s", "sde-dpmsolver++": None},
        "UniPCMultistepScheduler": {"bh1": "uni_pc"},
    }
    decides = {"PNDMScheduler": "skip_prk_steps", "UniPCMultistepScheduler": "solver_type"}
    chosen = choices.get(class_name, {})
    value = getattr(config, decides.get(class_name, "algorithm_type"))
    return chosen.get(value, name)
