"""All kinds of numbers that the host makes and that decide an image, and a digest of their bits.

Run as a program it prints the digests by kind.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from sdjax.diffusion import elementary
from sdjax.diffusion.brownian import TorchBrownianTree
from sdjax.diffusion.noise import HostNoiseStream
from sdjax.diffusion.samplers import SAMPLERS, Options, config_for, fill_in, table_of
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.schedules import SCHEDULES
from sdjax.diffusion.timestep_spacing import ScheduleError, default_spacing
from sdjax.images.masks import gaussian

SHAPE = (16, 24, 4)
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid")


def functions() -> Iterator[np.ndarray]:
    """Of the elementary functions."""
    positive = np.ldexp(1 + np.arange(4000) % 997 / 1024, np.arange(4000) % 61 - 30)
    yield from (elementary.log(positive), elementary.log1p(positive), elementary.power(positive, 1 / 7))
    steps = np.arange(-4000, 4000) / 617
    for function in (elementary.exp, elementary.expm1, elementary.sin, elementary.cos, elementary.tan, elementary.atan):
        yield function(steps)
    yield elementary.acos(np.arange(-500, 501) / 500)


def host_noise(source: str) -> Iterator[np.ndarray]:
    """Of the generators, plain and in all that is made of it."""
    for seed in (0, 7, 2**63 + 11):
        noise = HostNoiseStream(source, seed, SHAPE, variation_seed=3, variation_strength=0.3, resize_from=(24, 16))
        yield from (noise.first, noise.next(SHAPE), noise.next((1, 1, 3)))
        path = TorchBrownianTree(0.03, 14.6, seed, SHAPE, source)
        yield from (path(14.6, 3.1), path(3.1, 0.4))


def tables() -> Iterator[np.ndarray]:
    """Of the samplers, as the device gets them."""
    kinds = [SchedulerConfig(beta_schedule=betas) for betas in BETAS]
    kinds.append(SchedulerConfig(beta_schedule="linear", rescale_betas_zero_snr=True))
    each = [*product(kinds[:1], SAMPLERS, SCHEDULES), *product(kinds, ("uni_pc", "deis", "dpmpp_3m_sde"), ["uniform"])]
    for config, sampler, schedule in each:
        kept = config_for(config, sampler, own=False)
        spacing = default_spacing(kept, SAMPLERS[sampler].rules, schedule)
        try:
            table = table_of(kept, sampler, schedule, spacing, 7, fill_in(kept, sampler, Options()))
        except ScheduleError:
            continue
        yield from (np.asarray(part, np.float64) for part in table)


def blurs() -> Iterator[np.ndarray]:
    """Of masks."""
    mask = np.zeros((40, 30), np.float32)
    mask[11:20, 7:] = 1
    yield from (gaussian(mask, sigma, 9) for sigma in (0.8, 2.0, 3.7))


def digest_of(arrays: Iterator[np.ndarray]) -> str:
    """The first digits of a hash of the bits."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def digests() -> dict[str, Any]:
    """Of all, by kind."""
    kinds = {"functions": functions(), "tables": tables(), "blurs": blurs()}
    kinds |= {source: host_noise(source) for source in ("torch", "philox")}
    return {kind: digest_of(arrays) for kind, arrays in kinds.items()}


if __name__ == "__main__":
    print(json.dumps(digests()))
