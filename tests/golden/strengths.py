"""The comparisons of samplers that begin with an image, a formula in the place of the network.

Recorded in strengths.npz by `tests.golden.sampler_reference`, which takes diffusers' schedulers through the timesteps
of its img2img pipeline.
"""

import functools
import itertools
from pathlib import Path

import numpy as np

from tests.golden import samplers
from tests.golden.samplers import Case

FILE = Path(__file__).with_name("strengths.npz")
# PNDM's Runge-Kutta steps of an image are made from levels that are not those of its latents. These grow large before
# they fall, and roundings with them.
RUNGE_KUTTA_TOLERANCE = 1e-6
# Of classes that keep outputs of earlier steps and count: all their configs. Of the others, some.
COUNTING = ("LMSDiscreteScheduler", "PNDMScheduler")
# (steps, strength)
_COUNTING_SHARES = ((20, 0.15), (20, 0.5), (20, 0.95), (7, 0.3), (7, 0.8), (4, 0.5))
_SHARES = ((20, 0.3), (7, 0.8))
_EVERY = 6


def _cases() -> list[Case]:
    of_diffusers = {case._replace(steps=0): None for case in samplers.CASES.values() if not case.sampler}
    counting = [case for case in of_diffusers if dict(case.config)["_class_name"] in COUNTING]
    others = [case for case in of_diffusers if case not in counting][::_EVERY]
    chosen = [*itertools.product(counting, _COUNTING_SHARES), *itertools.product(others, _SHARES)]
    return [case._replace(steps=steps, strength=strength) for case, (steps, strength) in chosen]


CASES = {case.name: case for case in _cases()}


def tolerance(case: Case) -> float:
    """How far sdjax may be off."""
    config = dict(case.config)
    pseudo = config["_class_name"] == "PNDMScheduler" and not config.get("skip_prk_steps")
    return RUNGE_KUTTA_TOLERANCE if pseudo else case.tolerance


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    """The references by the names of cases."""
    with np.load(FILE) as arrays:
        return dict(zip(arrays["names"].tobytes().decode().split("\n"), arrays["values"], strict=True))
