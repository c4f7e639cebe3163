"""What a checkpoint holds, of whatever family and in whatever form, and how its parameters are loaded."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike

from sdjax.checkpoints.digests import digest_files
from sdjax.checkpoints.load_params import NetworkTensors, Params, ParamTensor, load_networks
from sdjax.checkpoints.stored_tensor import CheckpointError
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.families.family import VAE, Configs, Family
from sdjax.models import VAEConfig


class Checkpoint(NamedTuple):
    """All that a checkpoint holds, as read.

    configs: of the family's networks, by name.
    params: of the networks, by name; arrays of numpy. Empty if no tensor was read.
    sampler: the registry's name of the scheduler's class, or None with `scheduler_class` not known here.
    low_res: the schedule of the noise that is put on images that condition the UNet, and
    max_noise_level: its noisiest level allowed; None and 0 where there is none.
    tokenizer_folder: None if the checkpoint has none of its own: it is CLIP's.
    tokenizer_texts: files of a tokenizer's folder that a single file carries, by name; where they are no vocabulary, it
      is CLIP's.
    digest: sha256 over every file that has a say in the images; empty if they were not hashed.
    file_digest: sha256 of a single file as it is, of which A1111's model hash is the first ten digits; else None.
    """

    family: Family
    configs: Configs
    params: Params
    scheduler: SchedulerConfig
    scheduler_class: str
    sampler: str | None
    low_res: SchedulerConfig | None = None
    max_noise_level: int = 0
    tokenizer_folder: Path | None = None
    tokenizer_texts: Mapping[str, str] = types.MappingProxyType({})
    digest: str = ""
    file_digest: str | None = None


class VAEFile(NamedTuple):
    """A VAE of which nothing but names and shapes is read yet.

    where: the file or folder.
    knows_scale: whether its `scaling_factor` is known, from a config.
    chosen: the tensor of each parameter.
    decisive: the files that have a say in its images, from `root` on.
    """

    where: Path
    config: VAEConfig
    knows_scale: bool
    chosen: list[ParamTensor]
    root: Path
    decisive: tuple[Path, ...]

    def beside(self, scale: float) -> VAEConfig:
        """Its config for a UNet whose latents are scaled so.

        Raises:
          CheckpointError: if its own latents are scaled otherwise.
        """
        if self.knows_scale and self.config.scaling_factor != scale:
            raise CheckpointError(
                f"{self.where}: its scaling_factor is {self.config.scaling_factor}, but the UNet was trained on "
                f"latents scaled by {scale}: it is the VAE of another kind of model"
            )
        return dataclasses.replace(self.config, scaling_factor=scale)

    def digest(self, hashed: Mapping[Path, str]) -> str:
        """sha256 of a single file, or over the files of a folder; `hashed` has those of files that have been read."""
        if self.decisive == (self.where,) and self.where in hashed:
            return hashed[self.where]
        return digest_files(self.root, self.decisive, hashed)


def check_fit(where: str, family: Family, configs: Configs) -> None:
    """Raises `CheckpointError` that begins with `where` if networks of these configs make no model of the family."""
    if problem := family.mismatch(configs):
        raise CheckpointError(f"{where}: {problem}")


def vae_dtype_of(config: VAEConfig, dtype: DTypeLike, asked: DTypeLike | None) -> DTypeLike:
    """The dtype of a VAE: as asked for, else float32 for one that overflows in float16, else the model's.

    bfloat16 has the range of float32, and so no VAE overflows in it (diffusers upcasts from float16 alone, too).
    """
    if asked is not None:
        return asked
    return jnp.float32 if config.force_upcast and jnp.dtype(dtype) == jnp.float16 else dtype


def load_family(
    family: Family,
    configs: Configs,
    chosen: Mapping[str, Sequence[ParamTensor]],
    dtype: DTypeLike,
    vae_dtype: DTypeLike | None,
) -> tuple[Params, dict[Path, str]]:
    """Reads the parameters of a model's networks, and hashes the files that they are in.

    Args:
      chosen: the tensor of each parameter, by network.
      dtype: of the parameters in memory.
      vae_dtype: of the VAE's; None is as `vae_dtype_of` says.

    Returns and raises what `load_networks` does.
    """

    def part(name: str) -> NetworkTensors:
        own = vae_dtype_of(configs[name], dtype, vae_dtype) if name == VAE else dtype
        return NetworkTensors(chosen[name], family.networks[name].param_shapes(configs[name]), own)

    return load_networks({name: part(name) for name in family.networks})
