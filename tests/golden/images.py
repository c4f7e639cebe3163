"""The comparisons of whole images, from a prompt and a torch seed, as jobs; and what sdjax gives for them."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sdjax
from sdjax.diffusion.samplers import SAMPLERS

FOLDER = Path(__file__).parent
# At most this share of the values may differ by more than one step of 255.
TOLERATED_SHARE = 0.001
# Images in a batch: all cases of one program go through it together.
_BATCH = 4


class Image(NamedTuple):
    """One image. It is compared with diffusers, or if its timestep spacing is k-diffusion's with k-diffusion.

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
_webui = functools.partial(_job, timestep_spacing="k_diffusion")

# Samplers that diffusers has not.
_K_DIFFUSIONS = ("dpm_fast", "dpmpp_2s_ancestral", "dpmpp_3m_sde")
# To zero noise UniPC with bh1 gives NaN in diffusers.
_CHANGED = {"uni_pc": (("final_sigmas_type", "sigma_min"),)}


def _every_sampler(steps: Iterable[int]) -> dict[str, Image]:
    cases = {}
    for sampler in SAMPLERS:
        spacing = "k_diffusion" if sampler in _K_DIFFUSIONS else None
        for count in steps:
            job = _job(sampler=sampler, steps=count, timestep_spacing=spacing)
            cases[f"{sampler}-{count}"] = Image(job, _CHANGED.get(sampler, ()))
    # A1111's, and with few steps k-diffusion's heun.
    del cases["restart-20"]
    cases["restart-7"] = Image(_webui(sampler="restart", steps=7))
    return cases


# What users of A1111 know, with its defaults.
_A1111 = {
    "Euler a": Image(_webui(sampler="Euler a")),
    "LMS Karras": Image(_webui(sampler="LMS Karras")),
    "DPM2 a Karras": Image(_webui(sampler="DPM2 a Karras")),
    "DPM++ 2M Karras": Image(_webui(sampler="DPM++ 2M Karras")),
    "DPM++ SDE Karras": Image(_webui(sampler="DPM++ SDE Karras", steps=10)),
    "DPM++ 2M SDE Karras": Image(_webui(sampler="DPM++ 2M SDE Karras", seed=2**32 + 7)),
    "DPM++ 2M SDE Heun Exponential": Image(_webui(sampler="DPM++ 2M SDE Heun", schedule="Exponential")),
    "DPM++ 3M SDE Karras": Image(_webui(sampler="DPM++ 3M SDE Karras", eta=0.7)),
    "Heun, churned": Image(_webui(sampler="Heun", s_churn=10.0, s_tmin=0.2, s_tmax=10.0, s_noise=1.01)),
}


def _scheduled(sampler: str, schedules: Iterable[str] = (), spacings: Iterable[str] = ()) -> dict[str, Image]:
    """A sampler of diffusers in several schedules, each in several spacings."""
    return {
        f"{sampler}-{schedule}-{spacing}": Image(
            _job(sampler=sampler, schedule=schedule, timestep_spacing=spacing, steps=9)
        )
        for schedule in ("uniform", *schedules)
        for spacing in spacings
    }


_UNGUIDED = {
    "conditional_alone": Image(_job(sampler="euler", guidance_scale=1.0)),
    "unconditional": Image(_job(sampler="euler", guidance_scale=0.0)),
}
_LONG = "a red cat and a green dog on " * 14
_OTHERS = {
    "other_seed": Image(_job(sampler="ddim", seed=2**32 + 7)),
    "prompt_too_long": Image(_job(sampler="ddim", prompt=_LONG, prompt_syntax="plain")),
    "few_steps": Image(_job(sampler="dpmpp_2m", steps=5)),
    "one_step": Image(_job(sampler="dpmpp_2m", steps=1)),
    "little_guidance": Image(_job(sampler="euler_ancestral", guidance_scale=1.5, seed=4)),
    "ddim_with_noise": Image(_job(sampler="ddim", eta=0.6)),
    "third_order": Image(_job(sampler="dpmpp_2m", solver_order=3)),
    "rescaled_guidance": Image(_job(sampler="euler", guidance_rescale=0.7)),
    # diffusers leaves layers out for the prompt alone, so without guidance; A1111 for the negative prompt too.
    "clip_skip": Image(_job(sampler="ddim", clip_skip=1, guidance_scale=1.0)),
    "clip_skip_of_both": Image(_webui(sampler="Euler", clip_skip=1)),
    "thresholding": Image(
        _job(sampler="dpmpp_2m"),
        (("thresholding", True), ("dynamic_thresholding_ratio", 0.95), ("sample_max_value", 1.5)),
    ),
}
_ZERO_SNR = (("rescale_betas_zero_snr", True), ("timestep_spacing", "trailing"))
_COSINE = (("beta_schedule", "squaredcos_cap_v2"),)
_SPACINGS = ("leading", "linspace", "trailing")

# Recorded, and made without torch in every run of the tests.
RECORDED: dict[str, dict[str, Image]] = {
    "sd1": {**_every_sampler((20, 7)), **_A1111, **_UNGUIDED, **_OTHERS},
    "sd2": {**_every_sampler((20, 7)), "rescaled_guidance": _OTHERS["rescaled_guidance"]},
    "emoji": _every_sampler((20, 7)),
}
# Compared live only.
LIVE: dict[str, dict[str, Image]] = {
    "sd1": {
        **_scheduled("ddim", spacings=_SPACINGS),
        **_scheduled("euler", ("karras", "exponential", "beta"), _SPACINGS),
        **_scheduled("euler_ancestral", spacings=_SPACINGS),
        # Not exponential and beta: there diffusers' whole timesteps begin with 998 for Stable Diffusion's betas and
        # with 999 for others, as the logarithm of a float32 happens to be rounded. sdjax has 999, as has diffusers in
        # float64.
        **_scheduled("dpmpp_2m", ("karras", "lu"), _SPACINGS),
        **_scheduled("uni_pc_bh2", ("karras",), ("linspace",)),
        "odd_size": Image(_job(sampler="euler_ancestral", width=24, height=40)),
        **{
            f"cosine-{sampler}-{schedule}": Image(_job(sampler=sampler, schedule=schedule), _COSINE)
            # diffusers' own dpmpp_2m runs off its end where Karras' levels begin with equal timesteps.
            for sampler, schedule in (("euler", "uniform"), ("euler", "karras"), ("dpmpp_2m", "uniform"))
        },
    },
    "sd2": {
        **_A1111,
        **_UNGUIDED,
        **{
            f"zero_snr-{sampler}": Image(_job(sampler=sampler), _ZERO_SNR)
            for sampler in ("ddim", "euler", "dpmpp_2m", "uni_pc_bh2")
        },
    },
    "emoji": {**_A1111, **_UNGUIDED, "rescaled_guidance": _OTHERS["rescaled_guidance"]},
}


def recorded_file(model: str) -> Path:
    """Where the references of a model's images lie."""
    return FOLDER / f"images_{model}.npz"


def drawn(model: sdjax.Model, cases: Mapping[str, Image]) -> dict[str, np.ndarray]:
    """What sdjax draws, one program for all that share one."""
    images = {}
    devices = jax.local_devices()[:1]
    engine = sdjax.Engine(model, batch_size=_BATCH, devices=devices)
    for changes in dict.fromkeys(image.scheduler for image in cases.values()):
        changed = dataclasses.replace(model, scheduler=dataclasses.replace(model.scheduler, **dict(changes)))
        plans = sdjax.Engine(changed, batch_size=_BATCH, devices=devices)
        tasks = {name: plans.prepare(image.job) for name, image in cases.items() if image.scheduler == changes}
        unique = {task.id: task for task in tasks.values()}  # the checkpoint's own schedule may be one of those named
        # Its steps are all that a scheduler's config decides here, so the first engine has the programs.
        # A batch takes as long as its longest.
        sorted_tasks = sorted(unique.values(), key=lambda task: task.first.table.evaluations)
        results = {result.metadata["id"]: result.image for result in engine.run(sorted_tasks)}
        images.update({name: results[task.id] for name, task in tasks.items()})
    assert images.keys() == cases.keys()
    return images


def share_that_differs(found: np.ndarray, reference: np.ndarray) -> float:
    """The share of values that differ by more than 1 of 255."""
    assert found.shape == reference.shape, f"{found.shape} is not the reference's {reference.shape}"
    return float((np.abs(found.astype(int) - reference.astype(int)) > 1).mean())
