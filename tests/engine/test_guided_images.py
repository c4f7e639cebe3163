"""Guidance, composition and prompts that change on the way, against Euler's method written out step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion.noise import HostNoiseStream
from sdjax.engine.engine import Engine

STEPS, SCALE = 6, 5.0
CAT, DOG, BLUE = "a red cat", "the dog", "blue"
DEFAULTS = {"prompt": CAT, "negative_prompt": BLUE, "guidance_scale": SCALE}


def step(*parts, guided=True, weights=(1.0,)):
    """What a step is told: texts of the prompt's parts, their weights, and whether it is guided."""
    return parts, weights, guided


ALONE, BOTH = step(CAT, guided=False), step(CAT)
AND = step(CAT, DOG, weights=(1.0, 0.5))
AND_ALONE = step(CAT, DOG, weights=(1.0, 0.5), guided=False)
CASES = {
    "guided": ({}, [BOTH] * 6),
    "without_guidance": ({"guidance_scale": 1.0}, [ALONE] * 6),
    "in_the_middle": ({"guidance_start": 0.34, "guidance_end": 0.7}, [ALONE] * 2 + [BOTH] * 2 + [ALONE] * 2),
    "two_parts": ({"prompt": f"{CAT} AND {DOG} :0.5"}, [AND] * 6),
    "two_parts_for_a_while": ({"prompt": f"{CAT} AND {DOG} :0.5", "guidance_end": 0.5}, [AND] * 3 + [AND_ALONE] * 3),
    "another_prompt_from_a_step_on": ({"prompt": f"[{CAT}:{DOG}:0.5]"}, [BOTH] * 4 + [step(DOG)] * 2),
    "prompts_in_turns": ({"prompt": f"[{CAT}|{DOG}]"}, [BOTH, BOTH, step(DOG), BOTH, step(DOG), BOTH]),
    "rescaled": ({"guidance_rescale": 0.7}, [BOTH] * 6),
    "thresholded": ({"dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.2}, [BOTH] * 6),
}


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(tiny, batch_size=1, devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def predict(tiny):
    """(latents of unit variance, timestep, text) -> the network's output, for one image."""

    def ids(text):
        return jnp.asarray([tiny.tokenizer(text).ids], jnp.int32)

    @jax.jit
    def one(given, timestep, tokens):
        context = tiny.networks["text_encoder"].apply({"params": tiny.params["text_encoder"]}, tokens).last_hidden_state
        return tiny.unet.apply({"params": tiny.params["unet"]}, given, timestep, context)

    def prediction(given, timestep, text):
        given, timestep = jnp.asarray(given, jnp.float32), jnp.asarray([timestep], jnp.float32)
        return np.asarray(one(given, timestep, ids(text)), np.float64)

    return prediction


def by_hand(model, predict, job, steps):
    table = model.table(job)
    sigmas = [*table.sigma, 0.0]
    latents = HostNoiseStream("torch", job.seed, (8, 8, 4)).first[None].astype(np.float64) * table.start
    for index, (parts, weights, guided) in enumerate(steps):
        now, after = sigmas[index : index + 2]
        given = latents / np.sqrt(now**2 + 1)
        found = [predict(given, table.timestep[index], part) for part in parts]
        if guided:
            negative = predict(given, table.timestep[index], job.negative_prompt)
            output = negative + job.guidance_scale * sum(
                w * (f - negative) for w, f in zip(weights, found, strict=True)
            )
            matched = output * (found[0].std() / output.std())
            output = job.guidance_rescale * matched + (1 - job.guidance_rescale) * output
        else:
            output = sum(w * f for w, f in zip(weights, found, strict=True)) / sum(weights)
        denoised = latents - now * output
        if job.dynamic_thresholding_ratio:
            bound = np.quantile(np.abs(denoised), job.dynamic_thresholding_ratio)
            bound = min(max(bound, 1.0), job.sample_max_value)
            denoised = np.clip(denoised, -bound, bound) / bound
        latents = latents + (latents - denoised) / now * (after - now)
    scaled = jnp.asarray(latents / model.vae.config.scaling_factor, jnp.float32)
    pixels = model.vae.apply({"params": model.params["vae"]}, scaled, method="decode")[0]
    return np.round(np.clip(np.asarray(pixels) * 127.5 + 127.5, 0, 255)).astype(int)


@pytest.mark.parametrize("name", CASES)
def test_an_image_is_what_euler_gives_step_by_step(name, engine, predict):
    changes, steps = CASES[name]
    job = sdjax.Job(**{**DEFAULTS, **changes}, seed=3, steps=STEPS, sampler="euler", noise_source="torch")
    task = engine.prepare(job)
    [result] = engine.run([task])
    expected = by_hand(engine.model, predict, task.job, steps)
    assert (np.abs(result.image.astype(int) - expected) > 1).mean() <= 0.001
