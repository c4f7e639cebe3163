"""Accelerated images by DeepCache, tomesd and tgate, in diffusers' pipeline. Needs torch."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import tgate
import tomesd
import torch
from DeepCache import DeepCacheSDHelper

import sdjax
from sdjax.diffusion.noise import merging_choices, to_seed_words
from tests import toys
from tests.golden import accelerations, reference
from tests.golden.images import Image


@contextmanager
def _same_destinations(pipeline: Any, job: sdjax.Job) -> Iterator[None]:
    """tomesd draws its destinations from torch's generator; here it gets those that sdjax draws."""
    evaluation = layer = -1

    def begin(*_: Any) -> None:
        nonlocal evaluation, layer
        evaluation, layer = evaluation + 1, -1

    def randint(high: int, size: tuple[int, ...], **_: Any) -> torch.Tensor:
        nonlocal layer
        layer += 1
        words = jnp.asarray(to_seed_words(job.seed or 0)[None])
        found = merging_choices(words, evaluation, layer, size[:2], high)[0]
        return torch.from_numpy(np.array(found, np.int64))[..., None]

    hook = pipeline.unet.register_forward_pre_hook(begin)
    try:
        with mock.patch.object(tomesd.merge.torch, "randint", randint):
            yield
    finally:
        hook.remove()


class Drawer(reference.Drawer):
    """diffusers' pipeline with what accelerates it."""

    def draw(self, image: Image) -> np.ndarray:
        """What it draws: uint8, (height, width, 3)."""
        job, pipeline = image.job, self.pipeline
        with ExitStack() as stack:
            if job.token_merging_ratio:
                tomesd.apply_patch(pipeline, ratio=job.token_merging_ratio)
                stack.callback(tomesd.remove_patch, pipeline)
                stack.enter_context(_same_destinations(pipeline, job))
            if job.gate_step is not None:
                stack.enter_context(self._gated(job))
            elif job.deep_cache_interval > 1:
                stack.enter_context(self._deep_cached(job))
            return super().draw(image)

    @contextmanager
    def _deep_cached(self, job: sdjax.Job) -> Iterator[None]:
        helper = DeepCacheSDHelper(self.pipeline)
        helper.set_params(job.deep_cache_interval, job.deep_cache_branch)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()

    @contextmanager
    def _gated(self, job: sdjax.Job) -> Iterator[None]:
        """Of tgate's three intervals only the published gate: self-attention is not cached."""
        pipeline = self.pipeline
        forwards = {module: module.forward for module in pipeline.unet.modules()}
        if job.deep_cache_interval > 1:
            tgate.TgateSDDeepCacheLoader(pipeline, job.deep_cache_interval, job.deep_cache_branch)
        else:
            tgate.TgateSDLoader(pipeline)

        def call(*given: Any, **options: Any) -> Any:
            return pipeline.tgate(*given, **options, gate_step=job.gate_step, sp_interval=1, fi_interval=1, warm_up=0)

        with mock.patch.object(type(pipeline), "__call__", lambda _, *given, **options: call(*given, **options)):
            yield
        for module, forward in forwards.items():
            module.forward = forward


def draw(folder: Path) -> dict[str, np.ndarray]:
    """The images of all cases by a model."""
    return {name: Drawer(folder).draw(Image(job)) for name, job in accelerations.CASES.items()}


def record() -> None:
    """Stores them."""
    images = {}
    with tempfile.TemporaryDirectory() as root:
        for name, toy in accelerations.TOYS.items():
            found = draw(toys.write_toy(Path(root) / name, toy))
            images |= {f"{name}/{case}": image for case, image in found.items()}
    np.savez_compressed(accelerations.RECORDED, **images)
