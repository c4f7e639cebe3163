"""Stable Diffusion's upscalers as they are loaded: networks, parameters, tokenizer and schedules."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from sdjax.checkpoints.original_names import is_open_clip
from sdjax.checkpoints.sd_upscaler import read_upscaler
from sdjax.checkpoints.tensors import CheckpointError, Params
from sdjax.diffusion import elementary
from sdjax.diffusion.samplers import SAMPLERS, Options, config_for, fill_in, table_of
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.diffusion.sigmas import default_schedule
from sdjax.diffusion.tableau import Table
from sdjax.diffusion.timestep_spacing import ScheduleError, default_spacing
from sdjax.job import JobError
from sdjax.model import DTYPES, place_of
from sdjax.models import VAE, TextEncoder, UNet
from sdjax.models.latent_upscaler import LatentUpscalerUNet
from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import END, PADDING_2, clip_tokenizer


class Networks(NamedTuple):
    """What of an upscaler is part of a compiled program.

    prediction_type: what the x4 upscaler's UNet predicts.
    dtype: of parameters and network arithmetic, but for the VAE's.
    """

    text_encoder: TextEncoder
    unet: UNet | LatentUpscalerUNet
    vae: VAE
    prediction_type: str
    dtype: str


@dataclasses.dataclass(frozen=True, eq=False)
class Upscaler:
    """What `load_upscaler_pipeline` gives.

    Attributes:
      name: of its folder or file.
      digest: sha256 of the checkpoint's files.
      networks: with the UNet of the x4 or of the x2 upscaler.
      low_res: the schedule of the noise that is put on small pictures; None of the x2 upscaler.
      max_noise_level: the noisiest of its levels that is allowed.
      params: {"text_encoder", "unet", "vae"} -> nested dicts of arrays.
    """

    name: str
    digest: str
    networks: Networks
    tokenizer: Tokenizer
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str
    low_res: SchedulerConfig | None
    max_noise_level: int
    params: Params

    @property
    def factor(self) -> int:
        """By which sides grow: 4 (pictures) or 2 (latents)."""
        return 2 if isinstance(self.networks.unet, LatentUpscalerUNet) else 4

    def table(self, steps: int) -> Table:
        """The steps that the checkpoint's own scheduler takes.

        Raises:
          JobError: if it has not so many.
        """
        schedule = default_schedule(self.scheduler)
        config = config_for(self.scheduler, self.sampler, own=True)
        spacing = default_spacing(config, SAMPLERS[self.sampler].rules, schedule)
        try:
            options = fill_in(config, self.sampler, Options())
            table = table_of(config, self.sampler, schedule, spacing, steps, options)
        except ScheduleError as error:
            raise JobError(f"upscaling: {error}") from error
        return table._replace(timestep=elementary.log(table.sigma) / 4) if self.factor == 2 else table


def load_upscaler_pipeline(
    path: str | Path, *, dtype: str = "float32", variant: str | None = None, pickled: bool = False
) -> Upscaler:
    """Loads one of the two upscalers.

    Args:
      path: a folder that diffusers wrote, or of the x4 upscaler an original single file; or "org/name" on a hub.
      dtype: "float32", "bfloat16" or "float16"; a VAE that overflows in half precision stays float32.
      variant: which files of a folder to take, for example "fp16".
      pickled: allows files that torch pickled, which are read by a reader that runs nothing.

    Raises:
      CheckpointError: if it is no such upscaler, or not whole, or its scheduler is of a kind that is not supported.
      ConfigError: if a config asks for what is not implemented.
      ValueError: for another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: expected one of {', '.join(DTYPES)}")
    place = place_of(str(path), None, variant, pickled).path
    found = read_upscaler(place, variant, DTYPES[dtype], pickled=pickled)
    if found.sampler is None or found.scheduler.thresholding:
        raise CheckpointError(
            f"{place}: its scheduler, {found.scheduler_class}, is none of the samplers here, or asks for thresholding; "
            "expected DDIMScheduler of the x4 upscaler, EulerDiscreteScheduler of the x2 upscaler"
        )
    length = found.text_encoder.max_position_embeddings
    if found.tokenizer_folder is None:
        tokenizer = clip_tokenizer(length, PADDING_2 if is_open_clip(found.text_encoder) else END)
    else:
        tokenizer = Tokenizer(found.tokenizer_folder, length)
    if tokenizer.size > found.text_encoder.vocab_size:
        raise CheckpointError(
            f"{place}: the tokenizer has {tokenizer.size} tokens, the text encoder only {found.text_encoder.vocab_size}"
        )
    unet = found.unet
    upscaler = Upscaler(
        name=place.resolve().name if place.is_dir() else place.stem,
        digest=found.digest,
        networks=Networks(
            TextEncoder(found.text_encoder),
            LatentUpscalerUNet(unet) if found.low_res is None else UNet(unet),
            VAE(found.vae),
            found.scheduler.prediction_type,
            dtype,
        ),
        tokenizer=tokenizer,
        scheduler=found.scheduler,
        scheduler_class=found.scheduler_class,
        sampler=found.sampler,
        low_res=found.low_res,
        max_noise_level=found.max_noise_level,
        params=jax.device_put(found.params),
    )
    if upscaler.table(10).draws.any():
        raise CheckpointError(
            f"{place}: its scheduler, {found.scheduler_class}, adds noise on the way, which is not supported in "
            "upscaling; set another in scheduler/scheduler_config.json, of the published ones DDIMScheduler (x4) or "
            "EulerDiscreteScheduler (x2)"
        )
    return upscaler
