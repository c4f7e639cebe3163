"""The comparisons of whole pictures, from a prompt and a torch seed, as jobs; and what sdjax gives for them."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sdjax

FOLDER = Path(__file__).parent
# At most this share of the values may differ by more than one step of 255.
TOLERATED_SHARE = 0.001
# Images in a batch: all cases of one program go through it together.
_BATCH = 4


class Picture(NamedTuple):
    """One picture.

    scheduler: fields of the checkpoint's scheduler config that are changed for it.
    """

    job: sdjax.Job
    scheduler: tuple[tuple[str, Any], ...] = ()


_job = functools.partial(
    sdjax.Job,
    prompt="a photo of a red apple",
    negative_prompt="the blue cat",
    seed=3,
    steps=20,
    guidance_scale=7.5,
    noise_source="torch",
)

# The schedules that each of diffusers' classes has.
_SCHEDULES = {
    "ddim": ("uniform", "leading", "linspace", "trailing"),
    "euler": ("uniform", "karras", "leading", "linspace", "trailing"),
    "euler_ancestral": ("uniform", "leading", "linspace", "trailing"),
    "dpmpp_2m": ("uniform", "karras", "leading", "linspace", "trailing"),
}


def _scheduled(samplers: Iterable[str]) -> dict[str, Picture]:
    return {
        f"{sampler}-{schedule}": Picture(_job(sampler=sampler, schedule=schedule))
        for sampler in samplers
        for schedule in _SCHEDULES[sampler]
    }


_UNGUIDED = {
    "conditional_alone": Picture(_job(sampler="euler", guidance_scale=1.0)),
    "unconditional": Picture(_job(sampler="euler", guidance_scale=0.0)),
}
_OTHERS = {
    "other_seed": Picture(_job(sampler="ddim", seed=2**32 + 7)),
    "prompt_too_long": Picture(_job(sampler="ddim", prompt="a red cat and a green dog on " * 14)),
    "few_steps": Picture(_job(sampler="dpmpp_2m", steps=5)),
    "one_step": Picture(_job(sampler="dpmpp_2m", steps=1)),
    "little_guidance": Picture(_job(sampler="euler_ancestral", guidance_scale=1.5, seed=4)),
}
_ZERO_SNR = (("rescale_betas_zero_snr", True), ("timestep_spacing", "trailing"))
_COSINE = (("beta_schedule", "squaredcos_cap_v2"),)

# Recorded, and made without torch in every run of the tests: few programs, for compiling them takes longest.
RECORDED: dict[str, dict[str, Picture]] = {
    "sd1": {**_scheduled(_SCHEDULES), **_UNGUIDED, **_OTHERS},
    "sd2": _scheduled(("ddim", "dpmpp_2m")),
    "emoji": _scheduled(("euler_ancestral", "dpmpp_2m")),
}
# Compared live only.
LIVE: dict[str, dict[str, Picture]] = {
    "sd1": {
        "odd_size": Picture(_job(sampler="euler_ancestral", width=24, height=40)),
        **{
            f"cosine-{sampler}-{schedule}": Picture(_job(sampler=sampler, schedule=schedule), _COSINE)
            # diffusers' own dpmpp_2m runs off its end where Karras' levels begin with equal timesteps.
            for sampler, schedule in (("euler", "uniform"), ("euler", "karras"), ("dpmpp_2m", "uniform"))
        },
    },
    "sd2": {
        **_scheduled(("euler", "euler_ancestral")),
        **_UNGUIDED,
        **{
            f"zero_snr-{sampler}": Picture(_job(sampler=sampler), _ZERO_SNR)
            for sampler in ("ddim", "euler", "dpmpp_2m")
        },
    },
    "emoji": {**_scheduled(("ddim", "euler")), **_UNGUIDED},
}


def recorded_file(model: str) -> Path:
    """Where the references of a model's pictures lie."""
    return FOLDER / f"pictures_{model}.npz"


def drawn(model: sdjax.Model, pictures: Mapping[str, Picture]) -> dict[str, np.ndarray]:
    """What sdjax draws, one program for all that share one."""
    images = {}
    for changes in dict.fromkeys(picture.scheduler for picture in pictures.values()):
        changed = dataclasses.replace(model, scheduler=dataclasses.replace(model.scheduler, **dict(changes)))
        engine = sdjax.Engine(changed, batch_size=_BATCH, devices=jax.local_devices()[:1])
        tasks = {
            name: engine.prepare(picture.job) for name, picture in pictures.items() if picture.scheduler == changes
        }
        unique = {task.id: task for task in tasks.values()}  # the checkpoint's own schedule may be one of those named
        results = {result.metadata["id"]: result.image for result in engine.run(unique.values())}
        images.update({name: results[task.id] for name, task in tasks.items()})
    return images


def share_that_differs(found: np.ndarray, reference: np.ndarray) -> float:
    """The share of values that differ by more than 1 of 255."""
    assert found.shape == reference.shape, f"{found.shape} is not the reference's {reference.shape}"
    return float((np.abs(found.astype(int) - reference.astype(int)) > 1).mean())
