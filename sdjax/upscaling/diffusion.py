"""Stable Diffusion's two upscalers as models: x4, of images, and x2, of latents."""

from pathlib import Path

from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.jobs.job import Job
from sdjax.model import Model, model_of


def diffusion_upscaler_of(found: Checkpoint, place: Path, dtype: str) -> Model:
    """The model of a checkpoint, with the parameters that were read of it.

    Args:
      found: what its files say.
      place: where they are.
      dtype: of its parameters.

    Raises:
      CheckpointError: if its scheduler is of a kind that is not supported.
    """
    if found.sampler is None or found.scheduler.thresholding:
        raise CheckpointError(
            f"{place}: its scheduler, {found.scheduler_class}, is none of the samplers here, or asks for thresholding; "
            "expected DDIMScheduler of the x4 upscaler, EulerDiscreteScheduler of the x2 upscaler"
        )
    model = model_of(found, place, dtype)
    label = 0 if found.low_res else None
    if model.table(model.resolve(Job(prompt="", seed=0, steps=10, class_label=label))).draws.any():
        raise CheckpointError(
            f"{place}: its scheduler, {found.scheduler_class}, adds noise on the way, which is not supported in "
            "upscaling; set another in scheduler/scheduler_config.json, of the published ones DDIMScheduler (x4) or "
            "EulerDiscreteScheduler (x2)"
        )
    return model
