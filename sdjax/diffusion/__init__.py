"""The mathematics of diffusion: schedules, samplers, guidance, noise. No weights."""
