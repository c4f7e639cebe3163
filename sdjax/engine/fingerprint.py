"""What besides job and model decides the bits of an image, read where the devices are."""

import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from sdjax.checkpoints.checkpoint import vae_dtype_of
from sdjax.engine.device import device_kind
from sdjax.engine.settings import in_fingerprint
from sdjax.model import DTYPES, Model
from sdjax.version import __version__

# Packages besides JAX that decide bits: the networks' layers, noise and tables on the host, token ids.
_PACKAGES = ("flax", "numpy", "tokenizers", "transformers")


def fingerprint_of(model: Model, batch_size: int, device: jax.Device) -> dict[str, Any]:
    """The fingerprint of an engine; of values that JSON has.

    Args:
      model: with its dtypes.
      batch_size: images per device in each compiled program.
      device: one of those on which it runs, which are of one kind.
    """
    found: dict[str, Any] = {
        "batch_size": batch_size,
        "device_kind": device_kind(device),
        "dtype": model.dtype,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "sdjax": __version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        **in_fingerprint(),
    }
    if model.vae_dtype != jnp.dtype(vae_dtype_of(model.vae.config, DTYPES[model.dtype], None)).name:
        found["vae_dtype"] = model.vae_dtype
    return found
