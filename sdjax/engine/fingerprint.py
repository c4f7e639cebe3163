"""What besides job and model decides the bits of an image, read where the devices are."""

import functools
import importlib.metadata
import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import PIL

from sdjax.checkpoints.checkpoint import vae_dtype_of
from sdjax.engine.device import device_kind
from sdjax.engine.xla_settings import in_fingerprint
from sdjax.model import DTYPES, Model
from sdjax.version import __version__

# Packages besides JAX that decide bits: the networks' layers, noise and tables on the host, token ids.
PACKAGES = ("flax", "numpy", "tokenizers", "transformers")
# And those that do on a kind of accelerator, by patterns of their names, if they are installed: its compiler, and the
# libraries with its kernels. Elsewhere they are part of jaxlib.
_DEVICE_PACKAGES = {
    "tpu": "libtpu",
    "gpu": r"jax-(cuda|rocm)\d+-plugin|nvidia-(cublas|cuda-nvcc|cudnn|nvjitlink|nvvm)(-cu\d+)?",
}


class EngineIdentity(NamedTuple):
    """What besides a job decides the bits of its image, as an engine has it: jobs are planned with it in any process.

    model_digest, model_file_digest: the `digest` and `file_digest` of its model.
    classifier_digest: None without a classifier.
    pillow: the version of the package, which decodes and resizes images.
    fingerprint: the names and values of `fingerprint_of`.
    """

    model_digest: str
    model_file_digest: str | None
    classifier_digest: str | None
    pillow: str
    fingerprint: tuple[tuple[str, str | int], ...]

    def to_json(self) -> str:
        """A JSON object, which `from_json` reads."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str | bytes) -> "EngineIdentity":
        """The identity that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "fingerprint": tuple((name, value) for name, value in values["fingerprint"])})

    def differences(self, other: "EngineIdentity") -> dict[str, tuple[Any, Any]]:
        """The entries that differ, by name, with both values; None for an entry that one of them lacks."""
        own, others = ({**each._asdict(), **dict(each.fingerprint)} for each in (self, other))
        names = [name for name in {**own, **others} if name != "fingerprint"]
        return {name: (own.get(name), others.get(name)) for name in names if own.get(name) != others.get(name)}


def identity_of(model: Model, classifier_digest: str | None, batch_size: int, device: jax.Device) -> EngineIdentity:
    """The identity of an engine.

    Args:
      model: with its weights.
      classifier_digest: None without a classifier.
      batch_size, device: as for `fingerprint_of`.
    """
    fingerprint = tuple(fingerprint_of(model, batch_size, device).items())
    return EngineIdentity(model.digest, model.file_digest, classifier_digest, PIL.__version__, fingerprint)


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
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **in_fingerprint(),
    }
    if packages := device_packages(device.platform):
        found["device_packages"] = packages
    if model.vae_dtype != jnp.dtype(vae_dtype_of(model.vae.config, DTYPES[model.dtype], None)).name:
        found["vae_dtype"] = model.vae_dtype
    return found


@functools.cache
def device_packages(platform: str) -> str:
    """The packages that decide bits on a platform ("cpu", "gpu", "tpu"), as "name version; name version", sorted."""
    if platform not in _DEVICE_PACKAGES:
        return ""
    pattern = re.compile(_DEVICE_PACKAGES[platform])
    installed = {each.name.lower().replace("_", "-"): each.version for each in importlib.metadata.distributions()}
    return "; ".join(f"{name} {version}" for name, version in sorted(installed.items()) if pattern.fullmatch(name))
