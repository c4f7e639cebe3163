"""What is done to a batch, one pass after the other, as data: it is planned without weights or devices."""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from sdjax.adapters import per_image
from sdjax.adapters.adapter_set import AdapterSet
from sdjax.adapters.hypernetwork import Structure
from sdjax.diffusion.tableau import Table
from sdjax.engine.accelerations import Accelerations
from sdjax.engine.prompt_arrays import PromptSelection, PromptShape
from sdjax.jobs.input_images import InputImages
from sdjax.jobs.job import MAX_STEPS, Job
from sdjax.library.controlnets import ControlNetFile
from sdjax.library.upscalers import UpscalerFile
from sdjax.model import Model
from sdjax.models.controlnet import ControlNetConfig
from sdjax.models.t2i_adapter import T2IAdapterConfig
from sdjax.text.tokenize_prompt import TokenizedPrompt

# Digits of the short form of a batch key.
_KEY_DIGITS = 16


class Bucket(NamedTuple):
    """What one compiled sampling program is for. Everything else about a job is an array.

    height, width: of the decoded image, in pixels.
    prompts: the shape of what the text encoder reads and the network is asked.
    interval: whether there are steps without guidance.
    host_noise: how many times noise drawn on the host is added besides the first; None if it is drawn on the device.
    evaluations: of the network, rounded up.
    previews: steps of which images are kept, rounded up.
    classifier: whether the engine's classifier guides.
    hypernetworks: how those are built that act.
    low_rank: ranks of what is added to layers for each image; None if nothing is.
    masked: whether an image stays as it is outside of a mask.
    controls: how the ControlNets and T2I adapters are built that act.
    accelerations: that change images.
    """

    height: int
    width: int
    prompts: PromptShape
    interval: bool
    host_noise: int | None
    evaluations: int
    previews: int
    classifier: bool
    hypernetworks: tuple[Structure, ...]
    low_rank: per_image.Shape | None
    masked: bool
    controls: tuple[ControlNetConfig | T2IAdapterConfig, ...]
    accelerations: Accelerations = Accelerations()


class SampleKey(NamedTuple):
    """What the sampling of the jobs of a batch has in common besides its program.

    model: digest.
    start: see `Sample`.
    guided: the first evaluation that is guided, and the one after the last; None if all or none are.
    resized_from: (height, width) of latents of which the device resizes noise to their own size; None if of none.
    loras: digest, and weights in the UNet and in the text encoders, of those that are merged into the weights.
    hypernetworks: digests.
    masked: whether a part of an image is repainted.
    controls: digests of ControlNets.
    deep_cache_interval: every so many evaluations the whole UNet is computed.
    gate: the first evaluation behind T-GATE's gate; None without.
    """

    model: str
    start: str
    guided: tuple[int, int] | None
    resized_from: tuple[int, int] | None
    loras: tuple[tuple[str, float, float], ...]
    hypernetworks: tuple[str, ...]
    masked: bool
    controls: tuple[str, ...]
    deep_cache_interval: int = 1
    gate: int | None = None


# With what sampling begins: noise; an input image, encoded; the image of the pass before, encoded; its latents. With
# the last two names the UNet sees, besides noise, the image or latents of the pass before.
Start = Literal["noise", "input image", "image", "latents", "on image", "on latents"]


class Sample(NamedTuple):
    """Noise, or what the pass before made, to latents, by the UNet of a model.

    model: with the digest of its weights, which need not be loaded.
    job: of this pass, with all defaults filled in.
    prompts: what of its prompts is used.
    adapters: that are applied.
    low_rank: the LoRAs among them, if they are not merged into the weights.
    images: the job's input images.
    controls: the ControlNets that act.
    read: its prompts as they are read.
    weights: where the model's parameters are, if it is an upscaler of the library; None if it is the engine's.
    """

    model: Model
    job: Job
    start: Start
    bucket: Bucket
    key: SampleKey
    prompts: PromptSelection
    table: Table
    adapters: AdapterSet
    low_rank: tuple[per_image.Weighted, ...]
    images: InputImages
    controls: tuple[ControlNetFile, ...]
    read: TokenizedPrompt
    weights: UpscalerFile | None = None

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Passes of one key are run together."""
        return "sample", self.bucket, self.key

    @property
    def preview_steps(self) -> range:
        """The steps of which images are kept; if none are asked for, the first."""
        return range(0, int(self.table.step[-1]) + 1, self.job.preview_every or MAX_STEPS)


class Decode(NamedTuple):
    """Latents to images, by the VAE of a model; `weights` as of `Sample`."""

    model: Model
    weights: UpscalerFile | None = None

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Passes of one key are run together."""
        return "decode", self.model.digest


class ResizeLatents(NamedTuple):
    """Latents to those of another height and width; `method` is a key of `LATENT_UPSCALERS`."""

    method: str
    height: int
    width: int

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Passes of one key are run together."""
        return "resize latents", *self


class Paste(NamedTuple):
    """Images into those of which they are a part, or the image as it came where nothing was repainted."""

    images: InputImages

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Passes of one key are run together: what follows is for images of one size."""
        assert self.images.whole is not None
        return "paste", *self.images.whole.shape[:2]


class UpscaleImages(NamedTuple):
    """Images to another size: enlarged by a network as often as it takes, then resized; or resized alone.

    resampling: the filter, one of `PIXEL_UPSCALERS`.
    network: None resizes alone.
    """

    resampling: str
    network: UpscalerFile | None
    height: int
    width: int

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Passes of one key are run together."""
        return "upscale images", self.resampling, self.network and self.network.digest, self.height, self.width


Pass = Sample | Decode | ResizeLatents | Paste | UpscaleImages


def noise_resized_from(job: Job, factor: int) -> tuple[int, int] | None:
    """(height, width) of the latents from which a job's noise is resized to its own size; None if it is not.

    `factor` is the VAE's: pixels to a latent along each side.
    """
    height, width = job.seed_resize_from_height, job.seed_resize_from_width
    if height is None or width is None or (height, width) == (job.height, job.width):
        return None
    return height // factor, width // factor


class Task(NamedTuple):
    """A job that can be done, worked out.

    job: with all defaults filled in.
    id: of the image.
    passes: what is done, in this order; the first is a `Sample` of the engine's model.
    """

    job: Job
    id: str
    passes: tuple[Pass, ...]
    metadata: Mapping[str, Any]

    @property
    def batch_key(self) -> tuple[tuple[Any, ...], ...]:
        """Only tasks of one key share a batch."""
        return tuple(each.batch_key for each in self.passes)

    @property
    def short_batch_key(self) -> str:
        """The same in 16 hexadecimal digits, alike in every process."""
        return hashlib.sha256(repr(self.batch_key).encode()).hexdigest()[:_KEY_DIGITS]

    @property
    def first(self) -> Sample:
        """The pass that draws the image."""
        sample = self.passes[0]
        assert isinstance(sample, Sample), "the first pass draws the image"
        return sample

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All passes by the UNet of a model."""
        return tuple(each for each in self.passes if isinstance(each, Sample))

    @property
    def loras(self) -> tuple[tuple[str, float, float], ...]:
        """The LoRAs that are merged into the engine's model for it."""
        return self.first.key.loras
