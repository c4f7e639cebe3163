"""Scheduler configs for tests: Stable Diffusion's, and any settings at all."""

from hypothesis import strategies as st

from sdjax.diffusion.scheduler_config import SchedulerConfig

STABLE_DIFFUSION = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

scheduler_settings = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.integers(100, 1200),
        "beta_start": st.floats(1e-5, 1e-3),
        "beta_end": st.floats(1.5e-3, 2e-2),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "exp", "sigmoid"]),
        "rescale_betas_zero_snr": st.booleans(),
    }
)
