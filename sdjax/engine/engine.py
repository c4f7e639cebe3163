"""Holds a model on the local devices, takes jobs, gives images.

Every batch has the same compiled size on every device, whatever the number of jobs: a partial one is padded.
So the bits of an image depend on neither its neighbours nor the number of devices.
"""

import contextlib
import copy
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from sdjax.engine.batch_size import fitting
from sdjax.engine.devices import Devices
from sdjax.engine.execution import BatchState, Execution
from sdjax.engine.fingerprint import identity_of
from sdjax.engine.passes import Bucket, Sample, Task
from sdjax.engine.planner import LORA_MODES, open_library, planner_for
from sdjax.engine.uncomputed import Uncomputed
from sdjax.engine.xla_settings import pinned
from sdjax.images.previews import Preview
from sdjax.jobs.input_images import Read, read_file, with_depth
from sdjax.jobs.job import Job, JobError
from sdjax.library.classifier import Classifier, load_classifier
from sdjax.library.library import Library
from sdjax.library.opened import OpenLibrary, new_store
from sdjax.model import Model
from sdjax.models.vae_tiles import VAE_TILE

# Batches that are on their way while the host takes the one before.
_AHEAD = 2

# Batches that are formed before the devices can take them, so that programs of other keys are compiled by then.
_FORMED = 2
# Batches of tasks with LoRAs that wait, so that those with the same are merged into the weights once for all of them.
_MOST_WAITING = 16

# How the runtimes say so, and letters of it that are quoted.
_OUT_OF_MEMORY, _MOST_LETTERS = re.compile("out of memory|resource_exhausted", re.IGNORECASE), 200


class Result(NamedTuple):
    """An image and what it is.

    image: sRGB, of the size that the job asks, or the whole input image where a part of it was drawn; made larger by
      the job's upscaler.
    metadata: flat and JSON: the job as it was done, the model, the fingerprint, what was cut.
    finite: False if a network gave NaN or infinity, so that the image is worth nothing.
    previews: the steps that were kept.
    problem: why there is no image, and one of no size stands for it: it takes more memory than there is
      (`MemoryError`), or a file that it takes is gone or another by now (`JobError`).
    """

    image: UInt8[np.ndarray, "h w 3"]
    metadata: Mapping[str, Any]
    finite: bool
    previews: tuple[Preview, ...] = ()
    problem: MemoryError | JobError | None = None


# What costs a batch, if it is one of the problems that `Engine._failed` knows.
_FAILURES = (jax.errors.JaxRuntimeError, MemoryError, JobError)


def _parts(tasks: list[Task], size: int) -> Iterator[list[Task]]:
    """Batches of `size` tasks, of which the last may have fewer."""
    return (tasks[first : first + size] for first in range(0, len(tasks), size))


class _Running(NamedTuple):
    """A batch that the devices work on, and which of its passes is next."""

    state: BatchState
    next_pass: int


class Engine:
    """A model on devices.

    Attributes:
      identity: what besides a job decides the bits of its image.
      fingerprint: the part of it that is neither model nor classifier.
      images_per_batch: over all devices.
      planner: plans jobs for it.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 4,
        devices: Sequence[jax.Device] | None = None,
        classifier: Classifier | None = None,
        library: Library | OpenLibrary | None = None,
        lora_mode: str = "merged",
        vae_tile: int = VAE_TILE,
        read_image: Read = read_file,
        on_compile: Callable[[Bucket], None] = lambda bucket: None,
    ) -> None:
        """Puts the model's parameters on the devices.

        Args:
          model: from `sdjax.load`.
          batch_size: images per device in each compiled program, at least 1; part of the fingerprint.
          devices: of one kind; all local ones if None.
          classifier: for jobs with a `classifier_scale`; in the place of the library's.
          library: the files that jobs and prompts can name; None has none. One that is opened already for the same
            model is shared with those who opened it, and its classifier is not taken.
          lora_mode: "merged": into the weights, for one group of images after the other; "batched": beside the weights,
            for each image of a batch, where all LoRAs of an image are of plain low rank.
          vae_tile: images of more pixels than four squares of this side are decoded in tiles as large as one, which
            takes less memory, about twice the time, and changes pixels by rounding; 0 decodes all at once.
          read_image: gives the bytes of an input image by its path, raising `OSError` or `ValueError` that says why it
            can't; by itself it reads files of this machine.
          on_compile: called before a sampling program is compiled.

        Raises:
          CheckpointError, ConfigError: if a folder of the library is not there, or its estimator of depth or classifier
            can't be used.
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
        named = library.classifier if isinstance(library, Library) else None
        self.classifier = classifier if classifier or named is None else load_classifier(named)
        self._identify()
        self._lora_mode, self._vae_tile = lora_mode, vae_tile
        self._store = new_store()
        self.list_files(library, read_image)
        on_devices = Devices(self.devices)
        self._execution = Execution(model, self.classifier, on_devices, batch_size, vae_tile, on_compile)
        # Batch keys of which there were tasks.
        self._begun: set[Any] = set()
        # By batch key, of tasks for which there was not enough memory.
        self._fitting: dict[Any, int] = {}

    def _identify(self) -> None:
        digest = self.classifier.digest if self.classifier else None
        self.identity = identity_of(self.model, digest, self.batch_size, self.devices[0])
        self.fingerprint = dict(self.identity.fingerprint)
        self.images_per_batch = self.batch_size * len(self.devices)

    def with_batch_size(self, batch_size: int) -> "Engine":
        """The same engine with batches of another size; it shares the parameters and the compiled programs."""
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected at least 1")
        other = copy.copy(self)
        other.batch_size, other._fitting, other._begun = batch_size, {}, set()
        other._identify()
        other.planner = self.planner._replace(fingerprint=other.fingerprint)
        other._execution = self._execution.on(self._execution.devices, batch_size)
        return other

    def fitting_batch_size(self, task: Task, *, below: int | None = None, free: int | None = None) -> int:
        """The largest batch size at which the programs of a task fit into the free memory of a device; 0 if none does.

        Two or three programs are compiled for it, and nothing is computed. At most 32: larger batches make no device
        faster.

        Args:
          task: from `prepare`.
          below: only smaller batch sizes; None is all.
          free: bytes of memory of each device besides the model's parameters; None is what the first one has left.
        """
        with pinned(), jax.default_device(self.devices[0]):
            return fitting(self._execution, task, self.planner.library, below=below, free=free)

    def list_files(self, library: Library | OpenLibrary | None, read_image: Read = read_file) -> None:
        """Lists the files that jobs planned from now on can name; programs, the model and the classifier stay.

        Arguments and errors as of an engine; after an error those of before count.
        """
        opened = library if isinstance(library, OpenLibrary) else open_library(library, self.model, self._store)
        self.planner = planner_for(
            self.model,
            self.identity,
            opened,
            labels=self.classifier.labels if self.classifier else None,
            read_image=read_image,
            lora_mode=self._lora_mode,
            vae_tile=self._vae_tile,
        )

    def prepare(self, job: Job, notes: Mapping[str, Any] | None = None) -> Task:
        """Works out what a job takes.

        Args:
          job: with a seed.
          notes: more for the metadata, of where the job comes from; not part of the id.

        Raises:
          JobError: if the model can't do it, or the prompt can't be read and is to be rejected then.
          AdapterError: if an adapter that it names is not there, can't be read, or is for another model.
        """
        return self.planner.plan(job, notes)

    def run(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Makes the images of any tasks; they come in batches of one key, not in the order given.

        Two batches are on the devices at a time, and two more are formed; programs for those of another key are
        compiled in a thread meanwhile. No thread remains when the iterator ends or is closed.
        """
        running: deque[_Running | list[Result]] = deque()
        formed: deque[list[Task]] = deque()

        def dispatch() -> None:
            while formed and len(running) < _AHEAD:
                running.append(self._dispatched(formed.popleft()))

        def collected() -> list[Result]:
            results = self._collected(running.popleft())
            dispatch()  # first: the devices go on while the results are taken
            return results

        with ThreadPoolExecutor(1, "compile") as compiler:
            for batch in self._batches(tasks):
                formed.append(batch)
                if running and batch[0].batch_key not in self._begun:
                    compiler.submit(self._compile_ahead, batch[0])
                self._begun.add(batch[0].batch_key)
                if len(formed) > _FORMED:
                    yield from collected()
                dispatch()
            while running:
                yield from collected()

    def _compile_ahead(self, task: Task) -> None:
        """Compiles the programs of a task's passes, as far as their inputs can be told without computing them."""
        if task.first.model.takes_mask or task.first.controls:
            return
        # What fails here fails again, and is dealt with, where the task is run.
        with contextlib.suppress(Exception), pinned(), jax.default_device(self.devices[0]):
            devices = Uncomputed(self._execution.devices)
            self._execution.on(devices, self.batch_size).begin([task], self.planner.library)

    def _batches(self, tasks: Iterable[Task]) -> Iterator[list[Task]]:
        """Tasks of one batch key; those with LoRAs to be merged later, a group at a time."""
        waiting: dict[tuple[Any, ...], list[Task]] = {}
        size = self.images_per_batch
        for task in tasks:
            batch = waiting.setdefault(task.batch_key, [])
            batch.append(task)
            most = 1 if task.loras in ((), self._execution.merged_loras) else _MOST_WAITING
            if len(batch) >= most * size:
                yield from _parts(waiting.pop(task.batch_key), size)
        for batch in sorted(waiting.values(), key=lambda batch: batch[0].loras):
            yield from _parts(batch, size)

    def _dispatched(self, tasks: list[Task]) -> _Running | list[Result]:
        """A batch on its way, as far as no pass waits for what the devices make; or what became of it at once."""
        try:
            with pinned(), jax.default_device(self.devices[0]):
                tasks = [self._with_depth(task) for task in tasks]
                state, next_pass = self._execution.begin(tasks, self.planner.library)
                self._execution.begin_fetching(state)
                return _Running(state, next_pass)
        except _FAILURES as error:
            return self._failed(tasks, error)

    def _failed(self, tasks: list[Task], error: Exception) -> list[Result]:
        """What becomes of tasks for lack of memory, or of a file; other errors are raised again."""
        problem: MemoryError | JobError
        if isinstance(error, JobError):
            problem = error
        elif isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            bucket, reason = tasks[0].first.bucket, str(error).partition("\n")[0][:_MOST_LETTERS]
            size = f"{bucket.width}x{bucket.height} pixels with a batch size of {self.batch_size}"
            problem = MemoryError(f"out of memory at {size}: {self._advice(tasks[0])} ({reason})")
        else:
            raise error
        nothing = np.zeros((0, 0, 3), np.uint8)
        return [Result(nothing, task.metadata, False, problem=problem) for task in tasks]

    def _advice(self, task: Task) -> str:
        """Which batch size fits, where a task's does not."""
        key = task.batch_key
        if key not in self._fitting:
            try:
                self._fitting[key] = self.fitting_batch_size(task, below=self.batch_size)
            except _FAILURES:  # some compilers need the memory themselves
                self._fitting[key] = 1 if self.batch_size > 1 else 0
        size = self._fitting[key]
        return f"a batch size of {size} fits" if size else "not even a batch size of 1 fits"

    def _with_depth(self, task: Task) -> Task:
        """A task with the depth of its input images."""
        estimate = self.planner.library.estimate_depth
        passes = [
            each._replace(images=with_depth(each.images, estimate)) if isinstance(each, Sample) else each
            for each in task.passes
        ]
        return task._replace(passes=tuple(passes))

    def _collected(self, running: _Running | list[Result]) -> list[Result]:
        if isinstance(running, list):
            return running
        try:
            with pinned(), jax.default_device(self.devices[0]):
                state, passes = running.state, running.state.tasks[0].passes
                self._execution.run_all(state, range(running.next_pass, len(passes)), self.planner.library)
                return self._results(state)
        except _FAILURES as error:
            return self._failed(running.state.tasks, error)

    def _results(self, state: BatchState) -> list[Result]:
        images = self._execution.images(state)
        samples = [self._previewed(task) for task in state.tasks]
        kept = max(len(sample.preview_steps) for sample in samples) if samples[0].bucket.previews else 0
        frames = self._execution.preview_images(state, kept) if kept else []
        results = []
        for index, (task, sample) in enumerate(zip(state.tasks, samples, strict=True)):
            previews = [
                Preview(step, frames[2 * place][index], frames[2 * place + 1][index])
                for place, step in enumerate(sample.preview_steps)
                if frames
            ]
            image = images[index]
            size = {"image_height": image.shape[0], "image_width": image.shape[1]}
            metadata = {**task.metadata, "decoded_again": bool(state.decoded_again[index]), **size}
            results.append(Result(image, metadata, bool(state.finite[index]), tuple(previews)))
        return results

    def _previewed(self, task: Task) -> Sample:
        """The pass of which previews are kept: the last by the engine's model."""
        return [sample for sample in task.samples if sample.model.digest == self.model.digest][-1]
