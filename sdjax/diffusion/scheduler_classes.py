"""diffusers' scheduler classes: what becomes of a checkpoint that names one.

Those with a sampler of their own here are in `samplers.names`. Some others can't be sampled with, but say of the
network what all say (its betas and what it predicts), so another sampler draws with it. The rest are of networks that
are asked in another way, and with no sampler would the images be more than noise.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sdjax.models.config import ConfigError

# Classes of the same steps: of many timesteps at once, and of diffusers' former code for JAX.
_SAME = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
_FLAX = "Flax"
# Letters of a class' name.
_LONGEST = 100


class OtherSolver(NamedTuple):
    """A class whose jobs have to name a sampler.

    what: it is.
    keys: of its config, that are about its own steps.
    """

    what: str
    keys: frozenset[str] = frozenset()


OTHER_SOLVERS = {
    "DDIMInverseScheduler": OtherSolver("from images to noise"),
    "DPMSolverMultistepInverseScheduler": OtherSolver("from images to noise"),
    "RePaintScheduler": OtherSolver("inpainting by going back and forth", frozenset({"eta"})),
    "SASolverScheduler": OtherSolver(
        "a stochastic Adams method",
        frozenset(
            {"algorithm_type", "corrector_order", "lower_order_final", "predictor_order", "tau_func", "variance_type"}
        ),
    ),
    "UnCLIPScheduler": OtherSolver("DDPM of unCLIP", frozenset({"variance_type"})),
}

_EDM = "its network is told noise levels as EDM does (Karras et al. 2022), not timesteps"
_FLOW = "its network predicts the velocity of flow matching, not noise"
_TOKENS = "its network fills in tokens, and there are no latents"
_VE = "its network is of a variance exploding process, not told timesteps"
_VIDEO = "its noise levels are shifted, of video models"
# Why there is no drawing with a checkpoint that names one of these.
UNSUPPORTED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "its network is a consistency model, told noise levels and not timesteps",
    "CogVideoXDDIMScheduler": _VIDEO,
    "CogVideoXDPMScheduler": _VIDEO,
    "ConsistencyDecoderScheduler": "it is of a decoder of latents, not of a UNet that makes them",
    "CosineDPMSolverMultistepScheduler": _EDM,
    "DDPMWuerstchenScheduler": "its network is told shares of noise from 0 to 1, not timesteps",
    "DiscreteDDIMScheduler": _TOKENS,
    "EDMDPMSolverMultistepScheduler": _EDM,
    "EDMEulerScheduler": _EDM,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": _FLOW,
    "FlowMatchEulerDiscreteScheduler": _FLOW,
    "FlowMatchHeunDiscreteScheduler": _FLOW,
    "FlowMatchLCMScheduler": _FLOW,
    "HeliosDMDScheduler": _FLOW,
    "HeliosScheduler": _FLOW,
    "IPNDMScheduler": "its network is told times from 0 to 1 along a sine, not timesteps of betas",
    "KarrasVeScheduler": _VE,
    "LTXEulerAncestralRFScheduler": _FLOW,
    "MiniMaxH3Scheduler": _FLOW,
    "PiflowScheduler": _FLOW,
    "RFD4ProteinaScheduler": "its network makes proteins",
    "SCMScheduler": "its network predicts TrigFlow's velocity, not noise",
    "ScoreSdeVeScheduler": _VE,
    "ScoreSdeVpScheduler": "its network is told continuous times, not timesteps",
    "VQDiffusionScheduler": _TOKENS,
}

_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
# What diffusers' classes take for a key that is not in the file, where that is not `SchedulerConfig`'s default.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "PNDMScheduler": {"set_alpha_to_one": False},
    "HeunDiscreteScheduler": _SD_BETAS,
    "KDPM2DiscreteScheduler": _SD_BETAS,
    "KDPM2AncestralDiscreteScheduler": _SD_BETAS,
    "DPMSolverSDEScheduler": _SD_BETAS,
    "LCMScheduler": {**_SD_BETAS, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {**_SD_BETAS, "beta_schedule": "scaled_linear"},
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}


def same_class(name: str) -> str:
    """The class that has the same steps and the same defaults."""
    bare = name.removeprefix(_FLAX)
    return _SAME.get(bare, bare)


def filled_in(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A scheduler's config with the defaults of its class, and without what is only about steps that are not taken.

    Args:
      data: the JSON object.
      where: names the file in errors.

    Raises:
      ConfigError: for a class with which there is no drawing, and for what is no class' name.
    """
    name = data.get("_class_name")
    if name is None:
        return dict(data)
    if not isinstance(name, str) or not name.isidentifier() or len(name) > _LONGEST:
        raise ConfigError(f"{where}: _class_name = {repr(name)[:_LONGEST]} is not the name of a class")
    kind = same_class(name)
    if kind in UNSUPPORTED:
        raise ConfigError(
            f"{where}: {name} is not supported: {UNSUPPORTED[kind]}. If the UNet is Stable Diffusion's, take the "
            "scheduler_config.json of the model that it was made from"
        )
    unused = OTHER_SOLVERS[kind].keys if kind in OTHER_SOLVERS else frozenset()
    said = {key: value for key, value in data.items() if key not in unused}
    return {**_DEFAULTS.get(kind, {}), **said}
