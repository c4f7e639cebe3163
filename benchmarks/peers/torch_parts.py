"""Operations of the UNet in torch, feature maps with their channels last in memory."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.peers.peer import Run, threads
from benchmarks.peers.work import Work, part_inputs


def prepare(work: Work, model: Path, build: Path) -> Run:
    """The operation on random arrays; no model is read."""
    torch.set_num_threads(threads())
    torch.set_grad_enabled(False)
    operation = _OPERATIONS[work.kind](*map(torch.from_numpy, part_inputs(work)))
    return lambda work: operation().numpy()


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Callable[[], torch.Tensor]:
    heads_first = [x.transpose(1, 2) for x in (query, key, value)]
    return lambda: F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _convolution(x: torch.Tensor, kernel: torch.Tensor) -> Callable[[], torch.Tensor]:
    x = x.permute(0, 3, 1, 2)  # channels stay last in memory
    kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, kernel, padding=1).permute(0, 2, 3, 1)


def _product(x: torch.Tensor, weights: torch.Tensor) -> Callable[[], torch.Tensor]:
    weights = weights.T.contiguous()  # as linear layers keep them
    return lambda: F.linear(x, weights)


def _gelu(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: F.gelu(x)


_OPERATIONS: dict[str, Callable[..., Callable[[], torch.Tensor]]] = {
    "attention": _attention,
    "convolution": _convolution,
    "product": _product,
    "gelu": _gelu,
}
