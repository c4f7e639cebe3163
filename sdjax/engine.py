"""Holds a model on the local devices, takes jobs, gives images.

Every batch has the same compiled size on every device, whatever the number of jobs: a partial one is padded.
So the bits of an image depend on neither its neighbours nor the number of devices.
"""

import functools
import math
import os
import platform
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from sdjax import conditions
from sdjax.classifier import Classifier
from sdjax.diffusion import noise
from sdjax.diffusion.brownian import TorchBrownianTree
from sdjax.diffusion.sample import Trail, stack_tables
from sdjax.diffusion.tableau import Table
from sdjax.images.steps import Preview
from sdjax.job import MAX_STEPS, Job, JobError, image_id
from sdjax.model import Model
from sdjax.program import Beginning, Bucket, Inputs, first_latents, latents_of, pixels_of, specs
from sdjax.text.conditioning import Conditioning, condition
from sdjax.version import __version__

# Lengths of compiled tables: a job's evaluations are rounded up to the next.
_TABLE_ROWS = (64, 128, 256, 512, 1024, 2048)
# Lengths of compiled trails of kept steps, likewise.
_FRAMES = (0, 8, 16, 32, 64)
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
# Weights of a prompt's parts that add up to less have no mean.
_LEAST_SUM = 1e-3
# Batches that are on their way while the host takes the one before.
_AHEAD = 2


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


class Together(NamedTuple):
    """What the jobs of a batch have in common besides their program.

    guided: the evaluations that are guided, from one to before another; None if all or none are.
    resized_from: (height, width) of latents of which the device takes noise to their own size; None if of none.
    """

    guided: tuple[int, int] | None
    resized_from: tuple[int, int] | None


class Task(NamedTuple):
    """A job that this engine can do, worked out.

    job: with all defaults filled in.
    id: of the image.
    together: only jobs of the same share a batch.
    prompts: what of its prompts is used.
    """

    job: Job
    id: str
    bucket: Bucket
    together: Together
    prompts: conditions.Used
    table: Table
    metadata: Mapping[str, Any]


class Result(NamedTuple):
    """An image and what it is.

    image: sRGB.
    metadata: flat and JSON: the job as it was done, the model, the fingerprint, what was cut.
    finite: False if the network gave NaN or infinity, so that the image is worth nothing.
    previews: the steps that were kept.
    """

    image: UInt8[np.ndarray, "h w 3"]
    metadata: Mapping[str, Any]
    finite: bool
    previews: tuple[Preview, ...] = ()


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
        classifier: Classifier | None = None,
        on_compile: Callable[[Bucket], None] = lambda bucket: None,
    ) -> None:
        """Puts the model's parameters on the devices.

        Args:
          model: from `sdjax.load`.
          batch_size: images per device in each compiled program, at least 1; part of the fingerprint.
          devices: of one kind; all local ones if None.
          classifier: for jobs with a `classifier_scale`.
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
        self.classifier = classifier
        self._on_compile = on_compile
        self._mesh = Mesh(np.array(self.devices), ("data",))
        params = {**model.params, "classifier": classifier.params if classifier else {}}
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))
        self._programs: dict[Bucket | tuple[int, ...], Callable[..., Any]] = {}

    def prepare(self, job: Job, notes: Mapping[str, Any] | None = None) -> Task:
        """Works out what a job takes.

        Args:
          job: with a seed.
          notes: more to be told in the metadata, of where the job comes from; without a say in the id.

        Raises:
          JobError: if the model can't do it, or the prompt can't be read and is to be rejected then.
        """
        job = self.model.resolve(job)
        assert job.height is not None and job.width is not None
        table = self.model.table(job)
        steps = int(table.step[-1]) + 1
        read = condition(
            self.model.tokenizer,
            job.prompt,
            job.negative_prompt,
            syntax=job.prompt_syntax,
            emphasis=job.emphasis,
            steps=steps,
        )
        if read.problems and job.prompt_problems == "reject":
            raise JobError(
                f"{'; '.join(read.problems)}. Set prompt_problems = accept to have it read all the same, or "
                "prompt_syntax = plain to take every sign as text"
            )
        prompts, guided = self._branches(job, read, table)
        frames = len(range(0, steps, job.preview_every)) if job.preview_every else 0
        if frames > _FRAMES[-1]:
            least = -(-steps // _FRAMES[-1])
            raise JobError(
                f"preview_every = {job.preview_every}: of {steps} steps {frames} would be kept; expected {least} or "
                f"more, which keeps up to {_FRAMES[-1]}"
            )
        bucket = Bucket(
            job.height,
            job.width,
            prompts.shape,
            guided is not None,
            self._host_noise_places(job, table),
            next(rows for rows in _TABLE_ROWS if rows >= table.evaluations),
            next(count for count in _FRAMES if count >= frames),
            job.classifier_scale != 0,
        )
        fingerprint = dict(self.fingerprint)
        if bucket.classifier:
            fingerprint["classifier_digest"] = self._checked_classifier(job).digest
        identity = image_id(job, self.model.digest, fingerprint)
        metadata = {
            "id": identity,
            **{name: getattr(job, name) for name in job.__dataclass_fields__},
            "model": self.model.name,
            "model_digest": self.model.digest,
            **fingerprint,
            "steps_taken": steps,
            "evaluations": table.evaluations,
            "prompt_tokens": read.tokens,
            "prompt_chunks": read.chunks,
            "prompt_cut": read.cut,
            "negative_prompt_tokens": read.negative_tokens,
            "negative_prompt_chunks": read.negative_chunks,
            "negative_prompt_cut": read.negative_cut,
            "problems_found": "; ".join(read.problems),
            **(notes or {}),
        }
        resized_from = self._resized_from(job) if job.noise_source == "threefry" else None
        return Task(job, identity, bucket, Together(guided, resized_from), prompts, table, metadata)

    @staticmethod
    def _branches(job: Job, read: Conditioning, table: Table) -> tuple[conditions.Used, tuple[int, int] | None]:
        """What the network is asked: of the prompt's parts and the negative prompt those that count."""
        parts = len(read.part_weights)
        steps = int(table.step[-1]) + 1
        # Rounded down, but for what decimals lose: 0.29 of 100 is 29.
        begin, end = (math.floor(round(share * steps, 9)) for share in (job.guidance_start, job.guidance_end))
        whole = begin == 0 and end == steps
        if begin >= end:
            raise JobError(
                f"guidance_start = {job.guidance_start}, guidance_end = {job.guidance_end}: of {steps} steps none is "
                "within; guidance_scale = 1 is without guidance"
            )
        if whole and job.guidance_scale == 0:
            return conditions.used(read, (parts,), guided=False), None
        if read.part_weights == (1.0,) and job.guidance_scale == 1:
            return conditions.used(read, (0,), guided=False), None
        if not whole and abs(sum(read.part_weights)) < _LEAST_SUM:
            raise JobError(
                "the weights of the prompt's parts add up to about 0: such a prompt needs guidance in every step"
            )
        guided = None
        if not whole:
            within = np.flatnonzero((table.step >= begin) & (table.step < end))
            guided = (int(within[0]), int(within[-1]) + 1)
        return conditions.used(read, tuple(range(parts + 1)), guided=True), guided

    def _checked_classifier(self, job: Job) -> Classifier:
        if self.classifier is None:
            raise JobError(
                f"classifier_scale = {job.classifier_scale}: there is no classifier; set classifier = emoji, or a "
                "folder, for the run, or give the engine one"
            )
        count = len(self.classifier.labels)
        if job.classifier_label is None or job.classifier_label >= count:
            raise JobError(f"classifier_label = {job.classifier_label}: expected a number from 0 to {count - 1}")
        return self.classifier

    @staticmethod
    def _host_noise_places(job: Job, table: Table) -> int | None:
        if job.noise_source == "threefry":
            return None
        return next(rows for rows in _TABLE_ROWS if rows >= table.evaluations) + 1 if table.draws.any() else 0

    def _resized_from(self, job: Job) -> tuple[int, int] | None:
        if job.seed_resize_from_width is None or job.seed_resize_from_height is None:
            return None
        factor = self.model.vae.config.factor
        size = job.seed_resize_from_height // factor, job.seed_resize_from_width // factor
        return None if (job.seed_resize_from_height, job.seed_resize_from_width) == (job.height, job.width) else size

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Makes the images of any tasks; they come in batches of one bucket, not in the order given."""
        flying: deque[tuple[list[Task], tuple[Array, ...]]] = deque()
        for batch in self._batches(tasks):
            flying.append((batch, self._dispatch(batch)))
            if len(flying) >= _AHEAD:
                yield from self._collect(*flying.popleft())
        while flying:
            yield from self._collect(*flying.popleft())

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        waiting: dict[tuple[Any, ...], list[Task]] = {}
        for task in tasks:
            batch = waiting.setdefault((task.bucket, task.together), [])
            batch.append(task)
            if len(batch) == self.images_per_batch:
                yield waiting.pop((task.bucket, task.together))
        yield from waiting.values()

    def _dispatch(self, batch: list[Task]) -> tuple[Array, ...]:
        bucket = batch[0].bucket
        inputs = self._inputs(batch + batch[-1:] * (self.images_per_batch - len(batch)))
        latents, trail = self._compiled(bucket, self._program(bucket), inputs)(self._params, inputs)
        images, finite = self._decoded(latents)
        if not bucket.frames:
            return images, finite
        return images, finite, *trail

    def _compiled(self, key: Any, program: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        if key not in self._programs:
            if isinstance(key, Bucket):
                self._on_compile(key)
            options = dict(_COMPILER_OPTIONS.get(self.devices[0].platform, {}))
            self._programs[key] = jax.jit(program).lower(self._params, inputs).compile(options)
        return self._programs[key]

    def _decoded(self, latents: Array) -> tuple[Array, Array]:
        """Pixels of a batch of latents: (images, whether each is finite)."""
        program = self._sharded(functools.partial(pixels_of, self.model), PartitionSpec("data"), 2)
        return self._compiled(latents.shape, program, latents)(self._params, latents)

    @staticmethod
    def _kept_steps(task: Task) -> range:
        return range(0, int(task.table.step[-1]) + 1, task.job.preview_every or MAX_STEPS)

    def _collect(self, batch: list[Task], output: tuple[Array, ...]) -> Iterator[Result]:
        images, finite = (np.asarray(array) for array in output[:2])
        kept = max(len(self._kept_steps(task)) for task in batch)
        # One after the other: decoded, a trail takes far more room than as latents.
        frames = [np.asarray(self._decoded(values[place])[0]) for place in range(kept) for values in output[2:]]
        for index, (task, image, whole) in enumerate(zip(batch, images, finite, strict=False)):
            previews = [
                Preview(step, frames[2 * place][index], frames[2 * place + 1][index])
                for place, step in enumerate(self._kept_steps(task))
                if frames
            ]
            yield Result(image, task.metadata, bool(whole), tuple(previews))

    def _inputs(self, batch: list[Task]) -> Inputs:
        bucket = batch[0].bucket
        tables = [task.table for task in batch]
        jobs = [task.job for task in batch]

        def floats(*values: list[float]) -> np.ndarray:
            return np.array(values, np.float32).T

        latents, later = self._begun(batch) if bucket.host_noise is None else self._host_noise(batch)
        inputs = Inputs(
            prompts=conditions.arrays(
                [task.prompts for task in batch], tables, [job.clip_skip for job in jobs], bucket.rows
            ),
            words=np.stack([noise.seed_words(_seed(job)) for job in jobs]),
            latents=latents,
            guidance=floats(
                [job.guidance_scale for job in jobs],
                [job.guidance_rescale for job in jobs],
                [job.classifier_scale for job in jobs],
            ),
            threshold=floats(
                [job.dynamic_thresholding_ratio or 0.0 for job in jobs], [job.sample_max_value for job in jobs]
            ),
            labels=np.array([job.classifier_label or 0 for job in jobs], np.int32),
            guided=np.array(batch[0].together.guided or (0, bucket.rows), np.int32),
            tables=stack_tables(tables, bucket.rows),
            frames=self._frames(batch) if bucket.frames else (),
            noise=later,
        )
        return jax.device_put(inputs, jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), specs(inputs)))

    def _begun(self, batch: list[Task]) -> tuple[Array, tuple[()]]:
        """The first latents, of noise drawn on the device."""
        bucket, jobs = batch[0].bucket, [task.job for task in batch]
        shape = self._latent_shape(bucket)
        beginning = Beginning(
            words=np.stack([noise.seed_words(_seed(job)) for job in jobs]),
            variation_words=np.stack([noise.seed_words(job.variation_seed or 0) for job in jobs]),
            variation_strength=np.array([job.variation_strength for job in jobs], np.float32),
            start=np.array([task.table.start for task in batch], np.float32),
            first_noise=np.array([task.table.first_noise for task in batch], np.float32),
        )
        beginning = jax.device_put(beginning, NamedSharding(self._mesh, PartitionSpec("data")))
        resized_from = batch[0].together.resized_from
        program = functools.partial(first_latents, shape, resized_from)
        mapped = self._mapped(program, PartitionSpec("data"), PartitionSpec("data"))
        return self._compiled((shape, resized_from), mapped, beginning)(self._params, beginning), ()

    def _frames(self, batch: list[Task]) -> np.ndarray:
        frames = np.full((batch[0].bucket.rows, len(batch)), -1, np.int32)
        for number, task in enumerate(batch):
            for place, step in enumerate(self._kept_steps(task)):
                frames[np.flatnonzero(task.table.step == step)[0], number] = place
        return frames

    def _host_noise(self, batch: list[Task]) -> tuple[np.ndarray, np.ndarray | tuple[()]]:
        """The first latents, of noise drawn on the host; and the noise at each place at which the table draws any."""
        places = batch[0].bucket.host_noise or 0
        shape = self._latent_shape(batch[0].bucket)
        first = np.empty((len(batch), *shape), np.float32)
        later = np.zeros((places, len(batch), *shape), np.float32)
        for number, task in enumerate(batch):
            job, table = task.job, task.table
            source = noise.HostNoise(
                job.noise_source,
                _seed(job),
                shape,
                variation_seed=job.variation_seed,
                variation_strength=job.variation_strength,
                resize_from=self._resized_from(job),
            )
            first[number] = source.first * np.float32(table.start)
            # diffusers draws white noise for these, A1111 and k-diffusion the increments of a path.
            white = job.timestep_spacing != "k_diffusion" and job.sampler in _WHITE_IN_DIFFUSERS
            paths = np.flatnonzero(table.brownian)
            if len(paths) and not white:
                ends = np.concatenate([table.sigma, table.span[paths].ravel()])
                tree = TorchBrownianTree(ends[ends > 0].min(), ends.max(), _seed(job), shape, job.noise_source)
            for place in np.flatnonzero(table.draws):
                path = table.brownian[place] and not white
                later[place, number] = tree(*table.span[place]) if path else source.next(shape)
            if table.first_noise:
                first[number] += later[0, number] * np.float32(table.first_noise)
        return first, later if places else ()

    def _latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        cfg = self.model.vae.config
        return bucket.height // cfg.factor, bucket.width // cfg.factor, cfg.latent_channels

    def _program(self, bucket: Bucket) -> Callable[..., Any]:
        log_probability = self.classifier.log_probability if self.classifier else None
        program = functools.partial(latents_of, self.model, log_probability, bucket, self._latent_shape(bucket))

        def sharded(params: Any, inputs: Inputs) -> Any:
            trail: Any = PartitionSpec(None, "data")
            outputs = (PartitionSpec("data"), Trail(trail, trail))
            return self._mapped(program, specs(inputs), outputs)(params, inputs)

        return sharded

    def _sharded(self, program: Callable[..., Any], inputs: Any, outputs: int) -> Callable[..., Any]:
        return self._mapped(program, inputs, (PartitionSpec("data"),) * outputs)

    def _mapped(self, program: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        # Nothing crosses devices, and the loops of devices may differ in length: no replication to check.
        return jax.shard_map(
            program, mesh=self._mesh, in_specs=(PartitionSpec(), inputs), out_specs=outputs, check_vma=False
        )


# Samplers of which diffusers' class draws white noise where k-diffusion's has a Brownian path.
_WHITE_IN_DIFFUSERS = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpm_solver_2m_sde")


def _seed(job: Job) -> int:
    assert job.seed is not None, "the job is not resolved"
    return job.seed
