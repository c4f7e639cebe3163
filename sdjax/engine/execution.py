"""Passes on devices: each takes the state of a batch and leaves it changed, all dispatched alike over the devices."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sdjax.adapters.lora import by_network, changed, replaced
from sdjax.checkpoints.checkpoint import Checkpoint
from sdjax.checkpoints.tensors import Params
from sdjax.diffusion.sample import Previews
from sdjax.engine import batches, latents
from sdjax.engine.device import program_for
from sdjax.engine.devices import Devices, Program, shapes_of
from sdjax.engine.inputs import BY_IMAGE, BY_SECOND_AXIS, REPLICATED, SHARDING, EncoderInputs
from sdjax.engine.latents import latent_shape
from sdjax.engine.passes import Bucket, Decode, Pass, Paste, ResizeLatents, Sample, Task, UpscaleImages
from sdjax.engine.program import WINOGRAD, sample_latents
from sdjax.engine.upscaling_passes import fits
from sdjax.families.family import UNET
from sdjax.images import masks
from sdjax.jobs.input_images import paste
from sdjax.library.classifier import Classifier
from sdjax.library.opened import OpenLibrary
from sdjax.library.upscalers import UpscalerFile
from sdjax.model import Model
from sdjax.models import winograd
from sdjax.models.unet_config import UNetConfig
from sdjax.models.vae_tiles import tile_of
from sdjax.upscaling.tiles import enlarged_in_tiles, enlarged_tiles

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


@dataclasses.dataclass
class BatchState:
    """What the passes have made of a batch so far; arrays of the devices may still be worked on.

    latents: of the last sampling, padded to the compiled batch.
    decoded: (images, whether each is finite) of them by `decoder`, likewise; None once they are on the host.
    images: on the host, of the tasks alone.
    finite: whether all that was made of each so far is.
    decoded_again: whether an image was decoded again in float32, since half precision gave NaN.
    previews: latents that are kept on the way.
    """

    tasks: list[Task]
    latents: Any
    decoded: tuple[Any, Any] | None
    decoder: Model | None
    images: UInt8[np.ndarray, "b h w 3"] | None
    finite: Bool[np.ndarray, " b"]
    decoded_again: Bool[np.ndarray, " b"]
    previews: Previews | None


def start_of(tasks: list[Task]) -> BatchState:
    """The state of a batch before its first pass."""
    return BatchState(tasks, None, None, None, None, np.ones(len(tasks), bool), np.zeros(len(tasks), bool), None)


def awaits_images(each: Pass) -> bool:
    """Whether a pass waits for what the devices made before."""
    return isinstance(each, Paste | UpscaleImages) or (
        isinstance(each, Sample) and each.start in ("image", "on image", "on latents")
    )


class Execution:
    """Runs passes for an engine."""

    def __init__(
        self,
        model: Model,
        classifier: Classifier | None,
        devices: Devices,
        batch_size: int,
        vae_tile: int,
        on_compile: Callable[[Bucket], None],
    ) -> None:
        """Puts the parameters on the devices.

        Args:
          model: that draws images.
          classifier: that guides some.
          devices: on which all runs.
          batch_size: images per device in each program of the model. Those of upscalers have one image per device.
          vae_tile: see `tile_of`.
          on_compile: called before a sampling program is compiled.
        """
        self.model, self.devices, self._classifier = model, devices, classifier
        self._batch_size, self._vae_tile, self._on_compile = batch_size, vae_tile, on_compile
        params = {**model.params, "classifier": classifier.params if classifier else {}}
        self.params: Params = self.with_kernels(devices.put(params, REPLICATED))
        # The last parameters into which LoRAs were merged, and which.
        self._merged: tuple[Any, Params] = ((), self.params)

    def with_kernels(self, params: Params) -> Params:
        """Parameters with kernels of the UNet as well as a CPU multiplies by them in float32; elsewhere as they are."""
        if self.devices.all[0].platform != "cpu" or self.model.dtype != "float32":
            return params
        config = self.model.unet.config
        if not isinstance(config, UNetConfig):
            return params
        kernels = winograd.kernels_of(config, params[UNET])
        return {**params, WINOGRAD: program_for("cpu", winograd.all_transformed)(kernels)}

    @property
    def merged_loras(self) -> Any:
        """What was merged last into the model's weights."""
        return self._merged[0]

    def on(self, devices: Devices, batch_size: int) -> "Execution":
        """The same with the programs of other devices, and batches of another size; it shares the parameters."""
        other = copy.copy(self)
        other.devices, other._batch_size = devices, batch_size
        return other

    def begin(self, tasks: list[Task], library: OpenLibrary) -> tuple[BatchState, int]:
        """Dispatches the passes of tasks up to the first that waits for what the devices make; gives its place."""
        state, passes = start_of(tasks), tasks[0].passes
        count = next((place for place, each in enumerate(passes) if awaits_images(each)), len(passes))
        self.run_all(state, range(count), library)
        return state, count

    def run_all(self, state: BatchState, places: Iterable[int], library: OpenLibrary) -> None:
        """Runs those passes of a batch that are in some places."""
        for place in places:
            self.run([task.passes[place] for task in state.tasks], state, library)

    def run(self, each: Sequence[Pass], state: BatchState, library: OpenLibrary) -> None:
        """Runs one pass for all tasks of a batch; `each` are its passes, one for each task, of one key."""
        kind = each[0]
        if isinstance(kind, Sample):
            self._sample([sample for sample in each if isinstance(sample, Sample)], state, library)
        elif isinstance(kind, Decode):
            self._decode(kind, state, library)
        elif isinstance(kind, ResizeLatents):
            key = *kind.batch_key, state.latents.shape
            program = Program(key, functools.partial(latents.resized_latents, *kind))
            state.latents = self.devices.run(program, self.params, state.latents)
        elif isinstance(kind, UpscaleImages):
            self._upscale(kind, state, library)
        elif isinstance(kind, Paste):
            images = self.images(state)
            pasted = [
                paste(image, one.images) for image, one in zip(images, each, strict=True) if isinstance(one, Paste)
            ]
            state.images = np.stack(pasted)

    def _loaded(self, model: Model) -> Model:
        """The engine's own model for what was planned with it, in whatever process; an upscaler as it is."""
        return self.model if model.digest == self.model.digest else model

    # --- Sampling ---

    def _sample(self, samples: list[Sample], state: BatchState, library: OpenLibrary) -> None:
        first = samples[0]
        if first.model.family.conditioned_on is not None:
            state.latents = self._sampled_by_upscaler(samples, state, library)
            return
        padded = samples + samples[-1:] * (self._in_batch(first.model) - len(samples))
        begins_with = None
        if first.start == "image":
            begins_with = self._padded(self.images(state), len(padded))
        elif first.start == "latents":
            begins_with = state.latents
        params = self._params_with(first)
        state.latents, state.previews = self._sampled(padded, params, begins_with, library)

    def _sampled(self, batch: list[Sample], params: Params, begins_with: Any, library: OpenLibrary) -> Any:
        """Latents of a compiled batch, and those that are kept on the way."""
        controls = tuple(
            self.devices.kept(control.digest, functools.partial(library.controlnet_params, control))
            for control in batch[0].controls
        )
        model_params = self._loaded(batch[0].model).params
        given = batches.inputs(batch, model_params, self._computed(batch, params, begins_with, controls))
        return self.devices.run(self.sample_program(batch[0]), params, given)

    def sample_program(self, sample: Sample) -> Program:
        """The program of a pass: from `Inputs` to latents and previews."""
        log_probability = self._classifier.log_probability if self._classifier else None
        model, bucket = self._loaded(sample.model), sample.bucket
        shape = latent_shape(model, bucket.height, bucket.width)
        return Program(
            ("sample", model.digest, bucket),
            functools.partial(sample_latents, model, log_probability, bucket, shape),
            inputs=SHARDING,
            outputs=(BY_IMAGE, BY_SECOND_AXIS),
            on_compile=functools.partial(self._on_compile, bucket),
        )

    def _computed(
        self, batch: list[Sample], params: Params, begins_with: Any, controls: tuple[Any, ...]
    ) -> batches.Computed:
        """What is computed before the sampling program."""
        sample, model, bucket = batch[0], batch[0].model, batch[0].bucket
        shape = latent_shape(model, bucket.height, bucket.width)
        seeds = batches.seed_words(batch)
        if bucket.host_noise is None:
            first: Any = self._start(batch)
            later, image_noise, fill_noise, masked_noise = None, seeds, seeds, seeds
        else:
            noise: Any = batches.HostNoise(batch)
            first, later = noise.latents, noise.later
            image_noise, fill_noise, masked_noise = noise.image, noise.first, noise.masked
        init_latents = init_noise = None
        if sample.start in ("input image", "image", "latents"):
            init_latents = begins_with
            if sample.start != "latents":
                pixels = batches.input_images(batch) if begins_with is None else begins_with
                init_latents = self._encoded(sample, EncoderInputs(pixels, image_noise, None))
            given = batches.img2img_inputs(batch, init_latents, first, fill_noise)
            program = Program(("img2img", shapes_of(given)), functools.partial(latents.img2img_latents, shape))
            first = self.devices.run(program, self.params, given)
            if bucket.masked:
                init_noise = fill_noise if bucket.host_noise is not None else self._start(batch, unit=True)
        return batches.Computed(
            latents=first,
            extra_channels=self._extra_channels(batch, begins_with, image_noise, masked_noise),
            init_latents=init_latents if bucket.masked else None,
            init_noise=init_noise,
            noise=later,
            controls=controls,
        )

    def _start(self, batch: list[Sample], unit: bool = False) -> Any:
        """The first latents, of noise drawn on the device; `unit` is that noise at deviation 1."""
        bucket, resized_from = batch[0].bucket, batch[0].key.resized_from
        shape = latent_shape(batch[0].model, bucket.height, bucket.width)
        key = "start", shape, resized_from, len(batch)
        program = Program(key, functools.partial(latents.start_latents, shape, resized_from))
        return self.devices.run(program, self.params, batches.start_inputs(batch, unit))

    def _encoded(self, sample: Sample, given: EncoderInputs, masked: bool = False) -> Any:
        """The latents of images."""
        bucket, model = sample.bucket, sample.model
        tile = tile_of(bucket.height, bucket.width, self._vae_tile)
        shape = latent_shape(model, bucket.height, bucket.width)
        key = "encode", masked, shapes_of(given)
        program = Program(key, functools.partial(latents.encode_images, model, shape, tile, masked))
        return self.devices.run(program, self.params, given)

    def _extra_channels(self, batch: list[Sample], begins_with: Any, image_noise: Any, masked_noise: Any) -> Any:
        """What the UNet sees beside latents: a depth map; a mask and a masked image; what an upscaler is to enlarge."""
        sample, model, bucket = batch[0], batch[0].model, batch[0].bucket
        shape = latent_shape(model, bucket.height, bucket.width)
        if sample.start == "on latents":
            program = Program(("double", begins_with.shape), latents.doubled_latents)
            return self.devices.run(program, self.params, begins_with)
        if sample.start == "on image":
            given = batches.noised_image_inputs(batch, begins_with, image_noise)
            program = Program(("noise images", shapes_of(given)), latents.noised_images)
            return self.devices.run(program, self.params, given)
        if model.takes_depth:
            return batches.depth_maps(batch, shape)
        if not model.takes_mask:
            return None
        if sample.key.masked:
            hidden = EncoderInputs(batches.input_images(batch), masked_noise, batches.hidden_pixels(batch))
            left = np.asarray(self._encoded(sample, hidden, masked=True))
            return np.concatenate([(batches.latent_masks(batch) >= masks.HALF).astype(np.float32), left], axis=-1)
        tile = tile_of(bucket.height, bucket.width, self._vae_tile)
        key = "whole mask", shape, shapes_of(masked_noise)
        program = Program(key, functools.partial(latents.whole_mask_channels, model, shape, tile))
        return self.devices.run(program, self.params, masked_noise)

    def _params_with(self, sample: Sample) -> Params:
        """The model's parameters with the LoRAs of a batch merged into them; all else is shared."""
        loras = sample.key.loras
        if not loras:
            return self.params
        if self._merged[0] != loras:
            self._merged = ((), self.params)  # first: the devices hold one set of merged weights at a time
            weighted, networks = sample.adapters.loras, self.model.family.adapted_networks
            given = (
                [each.adapter.changes for each in weighted],
                [by_network(networks, np.float32(each.weight), np.float32(each.text_weight)) for each in weighted],
            )
            key = "merge", jax.tree.structure(given), shapes_of(given)
            leaves, kernels = self.devices.run(Program(key, _merged_leaves, REPLICATED, REPLICATED), self.params, given)
            params = replaced(self.params, leaves)
            if kernels:
                params[WINOGRAD] = {**params[WINOGRAD], **kernels}
            self._merged = (loras, params)
        return self._merged[1]

    # --- Upscaling ---

    def _in_batch(self, model: Model) -> int:
        """Images in a compiled batch: one per device for upscalers, whose images are large."""
        return len(self.devices.all) * (1 if model.family.conditioned_on else self._batch_size)

    def _params_of(self, each: Sample | Decode, library: OpenLibrary) -> Params:
        """The parameters of an upscaler, on the devices: its own, or those of its file."""

        def load() -> Params:
            if each.model.params:
                return each.model.params
            assert each.weights is not None, "the planner says where they are"
            return library.upscaler_params(each.weights)

        return self.devices.kept(each.model.digest, load)

    def _sampled_by_upscaler(self, samples: list[Sample], state: BatchState, library: OpenLibrary) -> Any:
        """Latents of a diffusion upscaler, as many images at once as there are devices."""
        first, size = samples[0], self._in_batch(samples[0].model)
        params = self._params_of(first, library)
        given = self.images(state) if first.start == "on image" else np.asarray(state.latents)[: len(samples)]
        made = []
        for start in range(0, len(samples), size):
            group = samples[start : start + size]
            padded = group + group[-1:] * (size - len(group))
            begins_with = self._padded(given[start : start + size], size)
            made.append(np.asarray(self._sampled(padded, params, begins_with, library)[0])[: len(group)])
        return np.concatenate(made)

    def _upscale(self, each: UpscaleImages, state: BatchState, library: OpenLibrary) -> None:
        """Images of another size, by a network (as often as it takes, then resized) or by interpolation."""
        images = self.images(state)
        if each.network is not None:
            images = self._enlarged(each.network, images, state, library)
            while _goes_on(each.network.scale, images.shape[1:3], each.height, each.width):
                images = self._enlarged(each.network, images, state, library)
        kind = _FILTERS[each.resampling]
        state.images = np.stack(
            [np.asarray(Image.fromarray(image).resize((each.width, each.height), kind)) for image in images]
        )

    def _enlarged(
        self, network: UpscalerFile, images: UInt8[np.ndarray, "b h w 3"], state: BatchState, library: OpenLibrary
    ) -> UInt8[np.ndarray, "b i j 3"]:
        """Images once through a network, one on each device at a time."""
        size = len(self.devices.all)
        params = self.devices.kept(network.digest, lambda: library.upscaler_params(network))
        assert not isinstance(network.config, Checkpoint), "it is a diffusion model"
        config = network.config
        function = functools.partial(enlarged_tiles, config)

        def run(tiles: UInt8[np.ndarray, "b h w 3"]) -> Any:
            return self.devices.run(Program(("enlarge", config, tiles.shape), function), params, tiles)

        made = []
        for start in range(0, len(images), size):
            group = images[start : start + size]
            enlarged = enlarged_in_tiles(config, run, self._padded(group, size))
            state.finite[start : start + size] &= enlarged.finite[: len(group)]
            made.append(enlarged.images[: len(group)])
        return np.concatenate(made)

    @staticmethod
    def _padded(values: np.ndarray, size: int) -> np.ndarray:
        """As many as a compiled batch has: the last again."""
        return np.concatenate([values, np.repeat(values[-1:], size - len(values), axis=0)])

    # --- Decoding ---

    def _decode(self, each: Decode, state: BatchState, library: OpenLibrary) -> None:
        model, given, size = self._loaded(each.model), state.latents, self._in_batch(each.model)
        if model.digest == self.model.digest:
            if isinstance(given, np.ndarray):
                given = self._padded(given, size)
            state.decoded, state.decoder, state.images = self._decoded(model, given, self.params), model, None
            state.latents = given
            return
        params = self._params_of(each, library)
        made = []
        for start in range(0, len(given), size):
            group = self._padded(given[start : start + size], size)
            images, finite, again = self._mended(model, group, self._decoded(model, group, params), params)
            state.finite[start : start + size] &= finite[: len(given) - start]
            state.decoded_again[start : start + size] |= again[: len(given) - start]
            made.append(images[: len(given) - start])
        state.decoded, state.images = None, np.concatenate(made)

    def _decoded(self, model: Model, given: Any, params: Params, dtype: str | None = None) -> Any:
        """Images of a compiled batch of latents, and whether each is finite."""
        factor = model.vae.config.factor
        tile = tile_of(given.shape[1] * factor, given.shape[2] * factor, self._vae_tile)
        key = "decode", model.digest, given.shape, dtype
        program = Program(key, functools.partial(latents.decode, model, dtype, tile))
        return self.devices.run(program, params, given)

    def _mended(
        self, model: Model, given: Any, decoded: tuple[Any, Any], params: Params
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images, decoded again in float32 where half precision gave NaN: (images, whether finite, whether again)."""
        images, finite = (np.asarray(array) for array in decoded)
        if finite.all() or model.vae_dtype == "float32":
            return images, finite, np.zeros_like(finite)
        wider, mended = (np.asarray(array) for array in self._decoded(model, given, params, "float32"))
        return np.where(finite[:, None, None, None], images, wider), finite | mended, ~finite

    @staticmethod
    def begin_fetching(state: BatchState) -> None:
        """Lets what was decoded come to the host as soon as the devices have it, without waiting for it."""
        for array in state.decoded or ():
            array.copy_to_host_async()

    def images(self, state: BatchState) -> UInt8[np.ndarray, "b h w 3"]:
        """The images of a batch, on the host."""
        if state.decoded is not None:
            assert state.decoder is not None
            count = len(state.tasks)
            images, finite, again = self._mended(state.decoder, state.latents, state.decoded, self.params)
            state.images, state.decoded = images[:count], None
            state.finite &= finite[:count]
            state.decoded_again |= again[:count]
        assert state.images is not None, "nothing is decoded yet"
        return state.images

    def preview_images(self, state: BatchState, count: int) -> list[np.ndarray]:
        """The kept latents of a batch as images: of each of `count` steps what was noisy, then what was denoised.

        One after the other: decoded, they take far more room than as latents.
        """
        assert state.previews is not None, "the batch keeps some"
        images = []
        for latents_of_step in (values[place] for place in range(count) for values in state.previews):
            decoded = self._decoded(self.model, latents_of_step, self.params)
            images.append(self._mended(self.model, latents_of_step, decoded, self.params)[0])
        return images


def _merged_leaves(params: Params, given: tuple[Any, Any]) -> tuple[Any, Any]:
    """The leaves that LoRAs change, and the transformed ones of the kernels among them that are kept transformed."""
    leaves = changed(params, *given)
    kernels = {path[1:-1]: leaf for path, leaf in leaves.items() if path[0] == UNET and path[-1] == "kernel"}
    kept = params.get(WINOGRAD, {})
    return leaves, winograd.all_transformed({path: kernel for path, kernel in kernels.items() if path in kept})


def _goes_on(scale: int, size: tuple[int, int], height: int, width: int) -> bool:
    """Whether a network that was run is run again: while images are too small, and there is room for the next."""
    return scale > 1 and (size[0] < height or size[1] < width) and fits(scale, *size)
