"""T-GATE: cross-attention that is computed in the first steps only (Zhang et al. 2024, arXiv:2404.02747).

What cross-attention gives hardly changes after the first steps. So it is kept, averaged over the prompt's and the
negative prompt's side, and added as it is in the steps after, in which there is one side only.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

# What cross-attention gave, by path of the layer.
Outputs = dict[str, Float[Array, "q n c"]]

# The name of a transformer block's cross-attention.
_CROSS_ATTENTION = "attn2"


@contextmanager
def cross_attention(cached: Mapping[str, Array] | None) -> Iterator[Outputs]:
    """A context in which a UNet's cross-attention is computed, or reused; gives a dictionary to which it is added.

    Args:
      cached: of another evaluation; None computes it.
    """
    outputs: Outputs = {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.module.name != _CROSS_ATTENTION or context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(context.module.path)
        outputs[path] = call(*args, **kwargs) if cached is None else cached[path]
        return outputs[path]

    with nn.intercept_methods(intercept):
        yield outputs
