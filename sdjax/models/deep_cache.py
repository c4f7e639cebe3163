"""DeepCache: most evaluations compute only what is near the latents (Ma, Fang and Wang 2023, arXiv:2312.00858).

The deep features of a UNet, those that enter its way up at a skip connection, change little from step to step. So they
are computed in some evaluations and reused in those after; the layers above them are computed in all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from sdjax.models.unet import UNet


@contextmanager
def deep_cache(branch: int, deep: Float[Array, "q h w c"] | None) -> Iterator[list[Array]]:
    """A context in which a UNet computes, or reuses, its deep features; gives a list to which they are added.

    Args:
      branch, deep: as of `UNet`; None computes them.
    """
    features: list[Array] = []

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, UNet) or context.method_name != "__call__":
            return call(*args, **kwargs)
        prediction, found = call(*args, **kwargs, branch=branch, deep=deep)
        features.append(found)
        return prediction

    with nn.intercept_methods(intercept):
        yield features
