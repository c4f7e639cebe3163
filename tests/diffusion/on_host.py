"""The steps that a table says, taken in numpy's float64: what the compiled loop is compared with, and what is precise
enough to measure orders of accuracy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from sdjax.diffusion.tableau import REGISTERS, Table


def run_on_host(table: Table, denoise: Callable[[Any, float, float], Any], latents: Any, noise: Any = None) -> Any:
    """The last latents of one image, in numpy's float64, where the compiled loop is in float32.

    Args:
      table: of a sampler.
      denoise: (latents, sigma, timestep) -> denoised latents.
      latents: of standard deviation 1.
      noise: by place, as `Table.draws` counts them; needed only by stochastic samplers.
    """
    registers = [np.zeros_like(latents) for _ in range(REGISTERS)]
    registers[0] = latents * table.start + (table.first_noise * noise[0] if table.first_noise else 0.0)
    for index in range(table.evaluations):
        denoised = denoise(registers[0], float(table.sigma[index]), float(table.timestep[index]))
        fresh = noise[index + 1] if table.draws[index + 1] else np.zeros_like(latents)
        terms = [*registers, denoised, fresh]
        registers = [
            sum((weight * term for weight, term in zip(row, terms, strict=True)), np.zeros_like(latents))
            for row in table.weights[index]
        ]
    return registers[0]
