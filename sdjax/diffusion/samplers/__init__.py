"""Every sampler as a function that is written down once, their registry, and their names."""

from sdjax.diffusion.samplers.names import own_sampler, sampler_named, schedule_named
from sdjax.diffusion.samplers.registry import MULTISTEP, SAMPLERS, Sampler, config_for, fill_in, sampler_row, table_of
from sdjax.diffusion.samplers.sampler_run import MULTISTEP_STARTS, Options, SamplerRun

__all__ = [
    "MULTISTEP",
    "MULTISTEP_STARTS",
    "SAMPLERS",
    "Options",
    "Sampler",
    "SamplerRun",
    "config_for",
    "fill_in",
    "own_sampler",
    "sampler_named",
    "sampler_row",
    "schedule_named",
    "table_of",
]
