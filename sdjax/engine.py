"""Holds a model on the local devices, takes jobs, gives images.

Every batch has the same compiled size on every device, whatever the number of jobs: a partial one is padded.
So the bits of an image depend on neither its neighbours nor the number of devices.
"""

import functools
import importlib.metadata
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, UInt8

from sdjax.adapters.library import Adapters, Library
from sdjax.adapters.lora import changed, replaced
from sdjax.batch import (
    Given,
    HostNoise,
    beginning,
    controlled,
    depth_maps,
    inputs,
    latent_masks,
    latent_shape,
    picture,
    seen,
    words,
)
from sdjax.checkpoints.diffusers_folder import vae_dtype_of
from sdjax.checkpoints.tensors import Params
from sdjax.classifier import Classifier
from sdjax.device import compiler_options, device_kind
from sdjax.diffusion.resize_latents import LATENT_UPSCALERS, resize_latents
from sdjax.diffusion.sample import Previews
from sdjax.images import masks
from sdjax.images.previews import Preview
from sdjax.job import Job, JobError
from sdjax.model import DTYPES, Model
from sdjax.models.vae_tiles import VAE_TILE, tile_of
from sdjax.picture_library import PictureLibrary, Pictures, check_files
from sdjax.pictures import put_back
from sdjax.plan import LORA_MODES, Setup, Task, Together, prepare
from sdjax.program import (
    Bucket,
    Controlled,
    Inputs,
    Seen,
    begun_with,
    first_latents,
    latents_of,
    latents_of_pictures,
    masked_whole,
    pixels_of,
    specs,
)
from sdjax.settings import in_fingerprint, pinned
from sdjax.version import __version__

# Batches that are on their way while the host takes the one before.
_AHEAD = 2

# How the runtimes say so, and letters of it that are told.
_OUT_OF_MEMORY, _SHOWN = re.compile("out of memory|resource_exhausted", re.IGNORECASE), 200

# Packages besides that decide bits: the networks' layers, noise and tables on the host, token ids.
_DECIDING = ("flax", "numpy", "tokenizers", "transformers")

# Programs that are kept: pictures may be of as many sizes.
_MOST_PROGRAMS = 512

_EVERY, _EACH = PartitionSpec(), PartitionSpec("data")


class Result(NamedTuple):
    """An image and what it is.

    image: sRGB, of the size that the job asks, or the whole picture where a part of it was drawn; made larger by the
      job's upscaler.
    metadata: flat and JSON: the job as it was done, the model, the fingerprint, what was cut.
    finite: False if the network gave NaN or infinity, so that the image is worth nothing.
    previews: the steps that were kept.
    problem: why there is no image, and one of no size stands for it: it takes more memory than there is
      (`MemoryError`), or a file that it takes is gone or another by now (`JobError`).
    """

    image: UInt8[np.ndarray, "h w 3"]
    metadata: Mapping[str, Any]
    finite: bool
    previews: tuple[Preview, ...] = ()
    problem: MemoryError | JobError | None = None


class _Flying(NamedTuple):
    """A batch that the devices work on."""

    tasks: list[Task]
    latents: Array
    images: Array
    finite: Array
    trail: Previews
    sound: Bool[np.ndarray, " b"]  # whether all was finite that was made of each before


# What costs a batch or an image, if it is one of the problems that `_failed` tells.
_FAILURES = (jax.errors.JaxRuntimeError, MemoryError, JobError)


def _failed(tasks: list[Task], error: Exception) -> list[Result]:
    """What becomes of tasks that take more memory than there is, or a file that is gone; others are raised again."""
    bucket, nothing = tasks[0].bucket, np.zeros((0, 0, 3), np.uint8)
    problem: MemoryError | JobError
    if isinstance(error, JobError):
        problem = error
    elif isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        told = str(error).partition("\n")[0][:_SHOWN]
        problem = MemoryError(f"out of memory at {bucket.width}x{bucket.height} pixels ({told})")
    else:
        raise error
    return [Result(nothing, task.metadata, False, problem=problem) for task in tasks]


def _enlarged(method: str, height: int, width: int, params: Any, latents: Array) -> Array:
    return resize_latents(latents, method, height, width)


def _shapes(tree: Any) -> tuple[Any, ...]:
    """What of arrays a program is compiled for."""
    return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree))


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
        library: Library | None = None,
        lora_mode: str = "merged",
        vae_tile: int = VAE_TILE,
        pictures: Pictures | None = None,
        on_compile: Callable[[Bucket], None] = lambda bucket: None,
    ) -> None:
        """Puts the model's parameters on the devices.

        Args:
          model: from `sdjax.load`.
          batch_size: images per device in each compiled program, at least 1; part of the fingerprint.
          devices: of one kind; all local ones if None.
          classifier: for jobs with a `classifier_scale`.
          library: of adapters, for jobs and prompts that name some.
          lora_mode: "merged": into the weights, for one group of images after the other; "batched": beside the weights,
            for each image of a batch, where all LoRAs of an image are of plain low rank.
          vae_tile: pictures of more pixels than four squares of this side are decoded in tiles as large as one, which
            takes less memory, about twice the time, and changes pixels by rounding; 0 decodes all at once.
          pictures: where pictures come from, and what sees them; None reads files of this machine.
          on_compile: called before a program is compiled.

        Raises:
          AdapterError: if a folder of the library is not there.
          CheckpointError, ConfigError: if a folder of `pictures` is not there, or its estimator of depth can't be used.
          ValueError: for a batch size below 1, no devices, or devices of several kinds.
        """
        if vae_tile < 0:
            raise ValueError(f"vae_tile = {vae_tile}: expected a number of pixels, or 0")
        if lora_mode not in LORA_MODES:
            raise ValueError(f"lora_mode = {lora_mode!r}: expected one of {', '.join(LORA_MODES)}")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected at least 1")
        if devices is not None and len({device.device_kind for device in devices}) != 1:
            raise ValueError(f"devices = {devices}: expected one or more, of one kind")
        self.model = model
        self.devices = tuple(jax.local_devices() if devices is None else devices)
        self.batch_size = batch_size
        self.images_per_batch = batch_size * len(self.devices)
        self.fingerprint: dict[str, Any] = {
            "batch_size": batch_size,
            "device_kind": device_kind(self.devices[0]),
            "dtype": model.dtype,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "sdjax": __version__,
            **{name: importlib.metadata.version(name) for name in _DECIDING},
            **in_fingerprint(),
        }
        if model.vae_dtype != jnp.dtype(vae_dtype_of(model.vae.config, DTYPES[model.dtype], None)).name:
            self.fingerprint["vae_dtype"] = model.vae_dtype
        self.classifier = classifier
        self._lora_mode, self._vae_tile = lora_mode, vae_tile
        self.list_files(library, pictures)
        self._on_compile = on_compile
        self._mesh = Mesh(np.array(self.devices), ("data",))
        params = {**model.params, "classifier": classifier.params if classifier else {}}
        self._params = jax.device_put(params, NamedSharding(self._mesh, _EVERY))
        # The last parameters into which LoRAs were merged, and which.
        self._merged: tuple[Any, Params] = ((), self._params)
        # Parameters of ControlNets that are on the devices, by digest.
        self._held: dict[str, Any] = {}
        self._programs: OrderedDict[Any, Callable[..., Any]] = OrderedDict()

    def list_files(self, library: Library | None, pictures: Pictures | None) -> None:
        """Lists the files that jobs prepared from now on can name; programs and the model stay.

        Arguments and errors as of an engine; after an error those of before count.
        """
        model = self.model
        adapters = Adapters(library or Library(), model.text_encoder.config, model.unet.config, model.params)
        if pictures is not None:
            check_files(pictures)
        seen_with = PictureLibrary(
            pictures or Pictures(), model.unet.config, model.vae.config, model.dtype, self._vae_tile
        )
        self._setup = Setup(
            model, self.classifier, adapters, self._lora_mode, self._vae_tile, seen_with, self.fingerprint
        )

    def prepare(self, job: Job, notes: Mapping[str, Any] | None = None) -> Task:
        """Works out what a job takes.

        Args:
          job: with a seed.
          notes: more to be told in the metadata, of where the job comes from; without a say in the id.

        Raises:
          JobError: if the model can't do it, or the prompt can't be read and is to be rejected then.
          AdapterError: if an adapter that it names is not there, can't be read, or is for another model.
        """
        with pinned(), jax.default_device(self.devices[0]):  # where depth is estimated, and upscalers are put
            return prepare(self._setup, job, notes or {})

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Makes the images of any tasks; they come in batches of one bucket, not in the order given."""
        flying: deque[_Flying | list[Result]] = deque()
        for batch in self._batches(tasks):
            flying.append(self._dispatched(batch))
            if len(flying) >= _AHEAD:
                yield from self._collected(flying.popleft())
        while flying:
            yield from self._collected(flying.popleft())

    def _dispatched(self, batch: list[Task]) -> _Flying | list[Result]:
        """A batch on its way, or what became of it at once."""
        try:
            with pinned(), jax.default_device(self.devices[0]):
                return self._dispatch(batch)
        except _FAILURES as error:
            return _failed(batch, error)

    def _collected(self, batch: _Flying | list[Result]) -> list[Result]:
        if isinstance(batch, list):
            return batch
        try:
            with pinned(), jax.default_device(self.devices[0]):
                return list(self._collect(batch))
        except _FAILURES as error:
            return _failed(batch.tasks, error)

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """Tasks of one bucket that are together; those with LoRAs to be merged at the end, a group at a time."""
        waiting: dict[tuple[Bucket, Together], list[Task]] = {}
        for task in tasks:
            batch = waiting.setdefault((task.bucket, task.together), [])
            batch.append(task)
            if len(batch) == self.images_per_batch and task.together.loras in ((), self._merged[0]):
                yield waiting.pop((task.bucket, task.together))
        for batch in (waiting[key] for key in sorted(waiting, key=lambda key: key[1].loras)):
            for first in range(0, len(batch), self.images_per_batch):
                yield batch[first : first + self.images_per_batch]

    def _dispatch(self, batch: list[Task]) -> _Flying:
        latents, trail = self._sampled(batch)
        sound = np.ones(self.images_per_batch, bool)
        if batch[0].second:
            seconds = [task.second for task in batch if task.second]
            begins_with, sound = self._enlarged(latents, batch[0].together.enlarged_by or "", seconds)
            pairs = zip(batch, seconds, strict=True)
            batch = [second._replace(id=task.id, metadata=task.metadata) for task, second in pairs]
            latents, trail = self._sampled(batch, begins_with)
        if batch[0].together.upscaled:
            latents = self._upscaled(latents, batch)
        return _Flying(batch, latents, *self._decoded(latents), trail, sound)

    def _upscaled(self, latents: Array, batch: list[Task]) -> Array:
        """Latents of a batch made larger by the upscaler that its jobs name."""
        larger = self._setup.pictures.upscalers.larger_latents(
            np.asarray(latents)[: len(batch)], [task.job for task in batch]
        )
        return jax.device_put(self._padded(larger), NamedSharding(self._mesh, _EACH))

    def _padded(self, images: np.ndarray) -> np.ndarray:
        """As many images as a batch has: the last again."""
        return np.concatenate([images, np.repeat(images[-1:], self.images_per_batch - len(images), axis=0)])

    def _sampled(self, batch: list[Task], begins_with: Any = None) -> tuple[Array, Previews]:
        """Latents of a batch, and those that are kept; `begins_with` is what a second pass begins with."""
        bucket = batch[0].bucket
        given = self._inputs(batch + batch[-1:] * (self.images_per_batch - len(batch)), begins_with)
        params = self._params_with(batch[0])
        return self._compiled(bucket, self._program(bucket), params, given)(params, given)

    def _enlarged(self, latents: Array, method: str, larger: list[Task]) -> tuple[Any, Bool[np.ndarray, " b"]]:
        """Latents of a batch, or its images, at the size of a second pass; and whether each is finite."""
        bucket = larger[0].bucket
        if method in LATENT_UPSCALERS:
            height, width, _ = latent_shape(self.model, bucket)
            program = functools.partial(_enlarged, method, height, width)
            key = ("enlarge", method, latents.shape, height, width)
            # What is not finite stays so.
            return self._run(key, program, latents, _EACH, _EACH), np.ones(self.images_per_batch, bool)
        images, finite, _ = self._mended(latents, *self._decoded(latents))
        made = self._setup.pictures.upscalers.enlarged(images[: len(larger)], method, bucket.height, bucket.width)
        return self._padded(made.images), self._padded(made.finite) & finite

    def _compiled(self, key: Any, program: Callable[..., Any], params: Params, given: Any) -> Callable[..., Any]:
        place = key, jax.tree.structure(params)  # an adapter may bring a bias to layers that have none
        if place not in self._programs:
            if isinstance(key, Bucket):
                self._on_compile(key)
            options = compiler_options(self.devices[0].platform)
            self._programs[place] = jax.jit(program).lower(params, given).compile(options)
            while len(self._programs) > _MOST_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(place)
        return self._programs[place]

    def _run(self, key: Any, program: Callable[..., Any], given: Any, over: PartitionSpec, outputs: Any) -> Any:
        """Runs a small program, compiled once for a key, on the model's own parameters."""
        given = jax.device_put(given, NamedSharding(self._mesh, over))
        return self._compiled(key, self._mapped(program, over, outputs), self._params, given)(self._params, given)

    def _params_with(self, task: Task) -> Params:
        """The parameters with a task's LoRAs merged into them; all else is shared."""
        if not task.together.loras:
            return self._params
        if self._merged[0] != task.together.loras:
            self._merged = ((), self._params)  # first: the devices hold one set of merged weights at a time
            loras = task.adapters.loras
            given = (
                [each.adapter.changes for each in loras],
                [
                    {"unet": np.float32(each.weight), "text_encoder": np.float32(each.text_encoder_weight)}
                    for each in loras
                ],
            )
            key = ("merge", jax.tree.structure(given), tuple(leaf.shape for leaf in jax.tree.leaves(given)))
            leaves = self._run(key, lambda params, given: changed(params, *given), given, _EVERY, _EVERY)
            self._merged = (task.together.loras, replaced(self._params, leaves))
        return self._merged[1]

    def _decoded(self, latents: Array, dtype: str | None = None) -> tuple[Array, Array]:
        """Pixels of a batch of latents: (images, whether each is finite)."""
        factor = self.model.vae.config.factor
        tile = tile_of(latents.shape[1] * factor, latents.shape[2] * factor, self._setup.vae_tile)
        program = functools.partial(pixels_of, self.model, dtype, tile)
        return self._run(("decode", latents.shape, dtype), program, latents, _EACH, (_EACH, _EACH))

    def _mended(self, latents: Array, images: Array, finite: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, decoded again in float32 where half precision gave NaN: (images, whether finite, whether again)."""
        drawn, whole = np.asarray(images), np.asarray(finite)
        if whole.all() or self.model.vae_dtype == "float32":
            return drawn, whole, np.zeros_like(whole)
        wider, mended = (np.asarray(array) for array in self._decoded(latents, "float32"))
        return np.where(whole[:, None, None, None], drawn, wider), whole | mended, ~whole

    def _collect(self, batch: _Flying) -> Iterator[Result]:
        images, finite, again = self._mended(batch.latents, batch.images, batch.finite)
        kept = max(len(task.kept_steps) for task in batch.tasks) if batch.tasks[0].bucket.frames else 0
        # One after the other: decoded, a trail takes far more room than as latents.
        frames = [
            self._mended(values[place], *self._decoded(values[place]))[0]
            for place in range(kept)
            for values in batch.trail
        ]
        for index, task in enumerate(batch.tasks):
            previews = [
                Preview(step, frames[2 * place][index], frames[2 * place + 1][index])
                for place, step in enumerate(task.kept_steps)
                if frames
            ]
            # An image in the picture of which it is a part, and as large as it was to be.
            try:
                made = self._setup.pictures.upscalers.finished(put_back(images[index], task.shown), task.job)
            except _FAILURES as error:
                yield from _failed([task], error)
                continue
            [image], [whole] = made
            size = {"image_height": image.shape[0], "image_width": image.shape[1]}
            metadata = {**task.metadata, "decoded_again": bool(again[index]), **size}
            yield Result(image, metadata, bool(finite[index] & batch.sound[index] & whole), tuple(previews))

    def _controls(self, batch: list[Task]) -> tuple[Controlled, ...]:
        """What ControlNets are given; their parameters stay on the devices while they are used."""
        controls = batch[0].controls
        held = {digest: self._held[digest] for digest in batch[0].together.controls if digest in self._held}
        for control in controls:
            if control.digest not in held:
                params = self._setup.pictures.control_params(control)
                held[control.digest] = jax.device_put(params, NamedSharding(self._mesh, _EVERY))
        self._held = held
        return controlled(batch, [held[control.digest] for control in controls])

    def _inputs(self, batch: list[Task], begins_with: Any = None) -> Inputs:
        bucket, together = batch[0].bucket, batch[0].together
        if bucket.host_noise is None:
            latents: Any = self._begun(batch)
            later, seeds = (), words(batch)
            drawn: Any = seeds
            filling: Any = seeds
            masked: Any = seeds
        else:
            noise = HostNoise(self.model, batch)
            latents, later = noise.latents, noise.later
            drawn, filling, masked = noise.picture, noise.first, noise.masked
        kept: Any = ()
        kept_noise: Any = ()
        if together.begins_with_picture or begins_with is not None:
            clean = begins_with
            if together.begins_with_picture:
                clean = self._encoded(seen(batch, drawn, pixels=begins_with), bucket)
            begun = functools.partial(begun_with, latent_shape(self.model, bucket))
            first = picture(batch, clean, latents, filling)
            latents = self._run(("begin with", _shapes(first)), begun, first, _EACH, _EACH)
            if bucket.masked:
                kept = clean
                kept_noise = filling if bucket.host_noise is not None else self._begun(batch, plain=True)
        channels = self._channels(batch, masked)
        given = inputs(self.model, batch, Given(latents, later, channels, kept, kept_noise, self._controls(batch)))
        return jax.device_put(given, jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), specs(given)))

    def _encoded(self, given: Seen, bucket: Bucket, for_mask: bool = False) -> Array:
        """The latents of pictures."""
        tile = tile_of(bucket.height, bucket.width, self._setup.vae_tile)
        shape = latent_shape(self.model, bucket)
        program = functools.partial(latents_of_pictures, self.model, shape, tile, for_mask)
        return self._run(("encode", for_mask, _shapes(given)), program, given, _EACH, _EACH)

    def _begun(self, batch: list[Task], plain: bool = False) -> Array:
        """The first latents, of noise drawn on the device; `plain` is that noise as it is."""
        shape, resized_from = latent_shape(self.model, batch[0].bucket), batch[0].together.resized_from
        program = functools.partial(first_latents, shape, resized_from)
        return self._run(("begin", shape, resized_from), program, beginning(batch, plain), _EACH, _EACH)

    def _channels(self, batch: list[Task], drawn: Any) -> Any:
        """What the UNet is given besides latents: a depth map; or a mask, and what of a picture it leaves."""
        bucket, shape = batch[0].bucket, latent_shape(self.model, batch[0].bucket)
        if not self.model.extra_channels:
            return ()
        if self.model.takes_depth:
            return depth_maps(batch, shape)
        if batch[0].together.masked:
            left = self._encoded(seen(batch, drawn, hide=True), bucket, for_mask=True)
            return np.concatenate([(latent_masks(batch) >= masks.HALF).astype(np.float32), np.asarray(left)], axis=-1)
        tile = tile_of(bucket.height, bucket.width, self._setup.vae_tile)
        program = functools.partial(masked_whole, self.model, shape, tile)
        return self._run(("masked", shape, drawn.ndim), program, drawn, _EACH, _EACH)

    def _program(self, bucket: Bucket) -> Callable[..., Any]:
        log_probability = self.classifier.log_probability if self.classifier else None
        program = functools.partial(latents_of, self.model, log_probability, bucket, latent_shape(self.model, bucket))

        def sharded(params: Any, given: Inputs) -> Any:
            trail: Any = PartitionSpec(None, "data")
            return self._mapped(program, specs(given), (_EACH, Previews(trail, trail)))(params, given)

        return sharded

    def _mapped(self, program: Callable[..., Any], over: Any, outputs: Any) -> Callable[..., Any]:
        # Nothing crosses devices, and the loops of devices may differ in length: no replication to check.
        return jax.shard_map(
            program, mesh=self._mesh, in_specs=(PartitionSpec(), over), out_specs=outputs, check_vma=False
        )
