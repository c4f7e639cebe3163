"""Holds a model on the local devices, takes jobs, gives images.

Every batch has the same compiled size on every device, whatever the number of jobs: a partial one is padded.
So the bits of an image depend on neither its neighbours nor the number of devices.
"""

import functools
import os
import platform
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from sdjax.diffusion import noise
from sdjax.diffusion.guidance import classifier_free, denoised, network_input
from sdjax.diffusion.sample import Table, sample, stack_tables
from sdjax.diffusion.samplers import SAMPLERS, Latents, Level
from sdjax.diffusion.schedule import Steps
from sdjax.job import Job, image_id
from sdjax.model import DTYPES, Model
from sdjax.text.tokenizer import Tokens
from sdjax.version import __version__

# Lengths of compiled coefficient tables: a job's steps are rounded up to the next.
_TABLE_ROWS = (32, 64, 128, 256, 512, 1024)
# How programs are compiled, by platform. On the CPU sums over a picture, as in a group norm, are left out of what XLA
# gives to YNNPACK: that splits them by the number of threads, which follows the number of devices and of cores, and so
# the bits would. Matrix products and convolutions stay with it: Eigen, the other choice, splits these by threads too
# (`sdjax.models.convolution` has the rest of this).
_COMPILER_OPTIONS: Mapping[str, Mapping[str, str | bool]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    },
    "gpu": {"xla_gpu_exclude_nondeterministic_ops": True},
}
# Features by which XLA and its libraries choose among kernels that round differently.
_CPU_FEATURES = ("fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "bf16", "sve")
# Batches that are on their way while the host takes the one before.
_AHEAD = 2


class Bucket(NamedTuple):
    """What one compiled program is for. Everything else about a job is an array."""

    height: int
    width: int
    sampler: str
    guided: bool
    noise_source: str
    rows: int


def device_kind(device: jax.Device) -> str:
    """What of a device decides bits; for a CPU also its instruction set, which JAX leaves out."""
    if device.platform != "cpu":
        return device.device_kind
    found = [name for name in _CPU_FEATURES if name in _cpu_flags()]
    limit = re.search(r"xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    parts = [device.device_kind, platform.machine(), *found, *(limit.groups() if limit else ())]
    return " ".join(part for part in parts if part)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """The features that Linux lists; none elsewhere."""
    try:
        with open("/proc/cpuinfo") as stream:
            lines = [line for line in stream if line.startswith(("flags", "Features"))]
    except OSError:
        return frozenset()
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()


class Task(NamedTuple):
    """A job that this engine can do, worked out.

    job: with all defaults filled in.
    id: of the image.
    prompts: tokens of what the network is asked for: (conditional, unconditional), or the one that counts.
    """

    job: Job
    id: str
    bucket: Bucket
    prompts: tuple[Tokens, ...]
    metadata: Mapping[str, Any]


class Result(NamedTuple):
    """An image and what it is.

    image: sRGB.
    metadata: flat and JSON: the job as it was done, the model, the fingerprint, what was cut.
    finite: False if the network gave NaN or infinity, so that the image is worth nothing.
    """

    image: UInt8[np.ndarray, "h w 3"]
    metadata: Mapping[str, Any]
    finite: bool


class _Inputs(NamedTuple):
    """The arrays of one batch; `Engine._specs` says which axis runs over images."""

    ids: Any  # (images, prompts, tokens)
    words: Any  # (images, 2) the seeds
    start: Any  # (images,) standard deviation of the first latents
    guidance_scale: Any  # (images,)
    steps: Any  # (images,)
    table: Table  # (rows, images)
    noise: Any  # torch only: (images, h, w, c) and (rows, images, h, w, c)


class Engine:
    """A model on devices.

    Attributes:
      fingerprint: what besides job and model decides the bits of an image.
      images_per_batch: over all devices.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 4,
        devices: Sequence[jax.Device] | None = None,
        on_compile: Callable[[Bucket], None] = lambda bucket: None,
    ) -> None:
        """Puts the model's parameters on the devices.

        Args:
          model: from `sdjax.load`.
          batch_size: images per device in each compiled program, at least 1; part of the fingerprint.
          devices: of one kind; all local ones if None.
          on_compile: called before a program is compiled.

        Raises:
          ValueError: for a batch size below 1, no devices, or devices of several kinds.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected at least 1")
        if devices is not None and len({device.device_kind for device in devices}) != 1:
            raise ValueError(f"devices = {devices}: expected one or more, of one kind")
        self.model = model
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        self.batch_size = batch_size
        self.images_per_batch = batch_size * len(self.devices)
        self.fingerprint = {
            "batch_size": batch_size,
            "device_kind": device_kind(self.devices[0]),
            "dtype": model.dtype,
            "jaxlib": jaxlib.__version__,
            "sdjax": __version__,
        }
        self._on_compile = on_compile
        self._mesh = Mesh(np.array(self.devices), ("data",))
        self._params = jax.device_put(model.params, NamedSharding(self._mesh, PartitionSpec()))
        self._programs: dict[Bucket, Callable[..., Any]] = {}

    def prepare(self, job: Job) -> Task:
        """Works out what a job takes; raises `JobError` if the model can't do it."""
        job = self.model.resolve(job)
        assert job.height is not None and job.width is not None and job.sampler is not None
        conditional, unconditional = self.model.tokenizer(job.prompt), self.model.tokenizer(job.negative_prompt)
        prompts = {1.0: (conditional,), 0.0: (unconditional,)}.get(job.guidance_scale, (conditional, unconditional))
        steps = self.model.steps(job)
        length = len(steps.timesteps)
        bucket = Bucket(
            job.height,
            job.width,
            job.sampler,
            len(prompts) == 2,
            job.noise_source,
            next(rows for rows in _TABLE_ROWS if rows >= length),
        )
        identity = image_id(job, self.model.digest, self.fingerprint)
        metadata = {
            "id": identity,
            **{name: getattr(job, name) for name in job.__dataclass_fields__},
            "model": self.model.name,
            "model_digest": self.model.digest,
            **self.fingerprint,
            "timestep_spacing": steps.spacing,
            "steps_taken": length,
            "prompt_tokens": conditional.total,
            "prompt_cut": conditional.cut,
            "negative_prompt_cut": unconditional.cut,
        }
        return Task(job, identity, bucket, prompts, metadata)

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Makes the images of any tasks; they come in batches of one bucket, not in the order given."""
        flying: deque[tuple[list[Task], tuple[Array, Array]]] = deque()
        for batch in self._batches(tasks):
            flying.append((batch, self._dispatch(batch)))
            if len(flying) >= _AHEAD:
                yield from self._collect(*flying.popleft())
        while flying:
            yield from self._collect(*flying.popleft())

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        waiting: dict[Bucket, list[Task]] = {}
        for task in tasks:
            batch = waiting.setdefault(task.bucket, [])
            batch.append(task)
            if len(batch) == self.images_per_batch:
                yield waiting.pop(task.bucket)
        yield from waiting.values()

    def _dispatch(self, batch: list[Task]) -> tuple[Array, Array]:
        bucket = batch[0].bucket
        inputs = self._inputs(batch + batch[-1:] * (self.images_per_batch - len(batch)))
        if bucket not in self._programs:
            self._on_compile(bucket)
            program = jax.jit(self._sharded(bucket))
            options = dict(_COMPILER_OPTIONS.get(self.devices[0].platform, {}))
            self._programs[bucket] = program.lower(self._params, inputs).compile(options)
        return self._programs[bucket](self._params, inputs)

    @staticmethod
    def _collect(batch: list[Task], output: tuple[Array, Array]) -> Iterator[Result]:
        images, finite = (np.asarray(array) for array in output)
        for task, image, whole in zip(batch, images, finite, strict=False):
            yield Result(image, task.metadata, bool(whole))

    def _inputs(self, batch: list[Task]) -> _Inputs:
        bucket = batch[0].bucket
        sampler = SAMPLERS[bucket.sampler]
        laid = [self.model.steps(task.job) for task in batch]
        tables = [sampler.coefficients(self.model.scheduler, steps) for steps in laid]
        inputs = _Inputs(
            ids=np.array([[tokens.ids for tokens in task.prompts] for task in batch], np.int32),
            words=np.stack([noise.seed_words(_seed(task.job)) for task in batch]),
            start=np.array([steps.start for steps in laid], np.float32),
            guidance_scale=np.array([task.job.guidance_scale for task in batch], np.float32),
            steps=np.array([len(steps.timesteps) for steps in laid], np.int32),
            table=stack_tables(tables, bucket.rows),
            noise=self._host_noise(batch) if bucket.noise_source == "torch" else (),
        )
        return jax.device_put(inputs, jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), self._specs(bucket)))

    def _host_noise(self, batch: list[Task]) -> tuple[np.ndarray, ...]:
        height, width, channels = self._latent_shape(batch[0].bucket)
        rows = batch[0].bucket.rows if SAMPLERS[batch[0].bucket.sampler].draws_noise else 0
        drawn = []
        for task in batch:
            steps = len(self.model.steps(task.job).timesteps) if rows else 0
            first, rest = noise.torch_noise(_seed(task.job), height, width, channels, steps)
            drawn.append((first, np.pad(rest, ((0, rows - steps), (0, 0), (0, 0), (0, 0)))))
        return np.stack([first for first, _ in drawn]), np.stack([rest for _, rest in drawn], axis=1)

    def _latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        cfg = self.model.vae.config
        return bucket.height // cfg.factor, bucket.width // cfg.factor, cfg.latent_channels

    def _specs(self, bucket: Bucket) -> _Inputs:
        """Which axis of each input runs over images."""
        first, second = PartitionSpec("data"), PartitionSpec(None, "data")
        empty = SAMPLERS[bucket.sampler].coefficients(self.model.scheduler, _ONE_STEP)
        return _Inputs(
            ids=first,
            words=first,
            start=first,
            guidance_scale=first,
            steps=first,
            table=jax.tree.map(lambda _: second, empty),
            noise=(first, second) if bucket.noise_source == "torch" else (),
        )

    def _sharded(self, bucket: Bucket) -> Callable[..., tuple[Array, Array]]:
        specs = (PartitionSpec(), self._specs(bucket))
        program = functools.partial(_program, self.model, bucket, self._latent_shape(bucket))
        data = PartitionSpec("data")
        # Nothing crosses devices, and the loops of devices may differ in length: no replication to check.
        return jax.shard_map(program, mesh=self._mesh, in_specs=specs, out_specs=(data, data), check_vma=False)


# Steps that only tell what a sampler's table looks like.
_ONE_STEP = Steps(np.zeros(1), np.array([1.0, 0.0]), 1.0, "leading")


def _seed(job: Job) -> int:
    assert job.seed is not None, "the job is not resolved"
    return job.seed


def _program(
    model: Model, bucket: Bucket, shape: tuple[int, int, int], params: Any, inputs: _Inputs
) -> tuple[UInt8[Array, "b h w 3"], Array]:
    """Text to pixels for one device's share of a batch: (images, whether each is finite)."""
    dtype = DTYPES[model.dtype]
    sampler = SAMPLERS[bucket.sampler]
    batch, prompts, length = inputs.ids.shape
    # float32 means float32, also where the device would rather round its factors.
    with jax.default_matmul_precision("highest" if model.dtype == "float32" else "default"):
        ids = jnp.moveaxis(inputs.ids, 1, 0).reshape(prompts * batch, length)
        context = model.text_encoder.apply({"params": params["text_encoder"]}, ids).last_hidden_state
        scale = inputs.guidance_scale[:, None, None, None]

        def denoise(latents: Latents, level: Level) -> Latents:
            network = jnp.tile(network_input(latents, level.sigma).astype(dtype), (prompts, 1, 1, 1))
            timesteps = jnp.tile(level.timestep.reshape(batch), prompts)
            prediction = model.unet.apply({"params": params["unet"]}, network, timesteps, context)
            prediction = prediction.astype(jnp.float32)
            if bucket.guided:
                conditional, unconditional = jnp.split(prediction, 2)
                prediction = classifier_free(unconditional, conditional, scale)
            return denoised(prediction, latents, level.sigma, model.scheduler.prediction_type)

        if bucket.noise_source == "torch":
            first, later = inputs.noise
            draw = lambda step: later[step]  # noqa: E731  (the two sources, side by side)
        else:
            first = noise.start_noise(inputs.words, shape)
            draw = lambda step: noise.step_noise(inputs.words, step, shape)  # noqa: E731
        latents = sample(
            sampler,
            denoise,
            first * inputs.start[:, None, None, None],
            inputs.table,
            inputs.steps,
            draw if sampler.draws_noise else None,
        )
        vae_dtype = jax.tree.leaves(params["vae"])[0].dtype
        scaled = (latents / model.vae.config.scaling_factor).astype(vae_dtype)
        pixels = model.vae.apply({"params": params["vae"]}, scaled, method="decode").astype(jnp.float32)
    finite = jnp.isfinite(pixels).all(axis=(1, 2, 3))
    return jnp.round(jnp.clip(pixels * 127.5 + 127.5, 0, 255)).astype(jnp.uint8), finite
