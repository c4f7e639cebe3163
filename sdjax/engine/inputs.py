"""The arrays of one batch, grouped by the axis that runs over images; how they are sharded follows from the group.

A new input is a field here, and the line of `sdjax.engine.batches` that fills it. What a batch does not have is None.
Tests check each group when it is made, against its annotations. Tuples with an array for each ControlNet are written as
`PyTree`, of which every leaf is checked (of a `tuple` only one).
"""

from typing import Any, NamedTuple

from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Float32, Int32, PyTree, UInt8, UInt32

from sdjax.diffusion.array_group import array_group
from sdjax.diffusion.sample import EvaluationArrays

# Of numpy on the host, of JAX on devices and in programs.
_Array = Any
# Over all devices alike; the first axis over devices; the second.
REPLICATED, BY_IMAGE, BY_SECOND_AXIS = PartitionSpec(), PartitionSpec("data"), PartitionSpec(None, "data")


@array_group
class PromptTokens:
    """The prompts of a batch: k readings of c chunks of n tokens; t texts, each a mix of readings.

    weights: of tokens.
    mask: which tokens may be attended to; None is all.
    chunks: of each text; what is beyond is padding.
    empty: 1 at the reading of the empty prompt, from which weights scale the distance; 0 everywhere scales from 0.
    normalise: whether weighted chunks are scaled back to their mean.
    vectors: of embeddings, r rows.
    """

    ids: Int32[_Array, "b k c n"]
    weights: Float32[_Array, "b k c n"]
    mask: Bool[_Array, "b k c n"] | None
    mix: Float32[_Array, "b t k"]
    chunks: Int32[_Array, "b t"]
    empty: Float32[_Array, "b k"]
    normalise: Bool[_Array, " b"]
    clip_skip: Int32[_Array, " b"]
    vectors: Float32[_Array, "b r e"] | None


@array_group
class PerImage:
    """What has images along its first axis.

    seed_words: the halves of the seeds.
    latents: the first ones.
    evaluations: of the network, for each image.
    threshold_ratio, threshold_max: of dynamic thresholding; a ratio of 0 is none.
    class_labels: of the UNet.
    extra_channels: that the UNet sees beside the latents: a mask and a masked image's latents, a depth map, an image.
    hypernetwork_weights: of each of the batch's.
    low_rank: what is added to layers for each image, by network.
    mask: shares that are repainted; the rest is put back between evaluations.
    init_latents: of the image that is put back.
    init_noise: standard normal, with which it is.
    control_images: of each ControlNet.
    guess_mode: of each ControlNet, whether it acts on the prompt's side only.
    """

    prompts: PromptTokens
    seed_words: UInt32[_Array, "b 2"]
    latents: Float32[_Array, "b h w c"]
    evaluations: Int32[_Array, " b"]
    guidance_scale: Float32[_Array, " b"]
    guidance_rescale: Float32[_Array, " b"]
    classifier_scale: Float32[_Array, " b"]
    classifier_labels: Int32[_Array, " b"]
    threshold_ratio: Float32[_Array, " b"]
    threshold_max: Float32[_Array, " b"]
    class_labels: Int32[_Array, " b"] | None = None
    extra_channels: Float32[_Array, "b h w d"] | None = None
    hypernetwork_weights: Float32[_Array, "b g"] | None = None
    low_rank: Any = None
    mask: Float32[_Array, "b h w 1"] | None = None
    init_latents: Float32[_Array, "b h w c"] | None = None
    init_noise: Float32[_Array, "b h w c"] | None = None
    control_images: PyTree[UInt8[_Array, "b y x 3"]] = ()
    guess_mode: PyTree[Bool[_Array, " b"]] = ()


@array_group
class PerEvaluation:
    """What has images along its second axis, evaluations (or parts of the prompt, or draws) along its first.

    table: the samplers' tables.
    text_of: the text that each branch sees.
    part_weights: of the parts of a prompt.
    control_weights: of each ControlNet; 0 where it does not act.
    previews: where in the previews an evaluation's latents are kept; -1 is nowhere.
    noise: drawn on the host, in the order of draws.
    """

    table: EvaluationArrays
    text_of: Int32[_Array, "e b p"]
    part_weights: Float32[_Array, "q b"]
    control_weights: PyTree[Float32[_Array, "e b"]] = ()
    previews: Int32[_Array, "e b"] | None = None
    noise: Float32[_Array, "d b h w c"] | None = None


@array_group
class Shared:
    """What is the same for all images.

    guided: the first evaluation that is guided, and the one after the last.
    hypernetworks, controls: their parameters.
    deep: in which evaluations DeepCache computes deep features.
    gate: the first evaluation behind T-GATE's gate.
    """

    guided: Int32[_Array, " 2"]
    hypernetworks: tuple[Any, ...] = ()
    controls: tuple[Any, ...] = ()
    deep: Bool[_Array, " e"] | None = None
    gate: Int32[_Array, " 1"] | None = None


class Inputs(NamedTuple):
    """All that the sampling program is given besides the model's parameters."""

    per_image: PerImage
    per_evaluation: PerEvaluation
    shared: Shared


# How they lie over the devices: the same for each array of a group.
_GROUPS: Any = (BY_IMAGE, BY_SECOND_AXIS, REPLICATED)
SHARDING = Inputs(*_GROUPS)


@array_group
class StartInputs:
    """What the first latents are made of where noise is drawn on the device.

    start: their standard deviation.
    first_noise: weight of noise that is added before the first evaluation.
    """

    seed_words: UInt32[_Array, "b 2"]
    variation_seed_words: UInt32[_Array, "b 2"]
    variation_strength: Float32[_Array, " b"]
    start: Float32[_Array, " b"]
    first_noise: Float32[_Array, " b"]


@array_group
class EncoderInputs:
    """Images for the VAE's encoder.

    noise: with which latents are drawn from the encoder's distribution; or seeds of it.
    hidden: where the image is grey instead; None is nowhere.
    """

    pixels: UInt8[_Array, "b y x 3"]
    noise: Float[_Array, "b h w c"] | UInt32[_Array, "b 2"]
    hidden: Bool[_Array, "b y x 1"] | None


@array_group
class Img2ImgInputs:
    """What the first latents of images that begin with an image are made of.

    image_latents: of that image.
    noise_latents: the first latents of noise alone.
    image_weight: 0 takes the noise alone.
    mask: shares that are repainted; None is all.
    fill: what stands there: an index of `sdjax.diffusion.inpaint.FILLINGS`.
    fill_noise: standard normal, or seeds of it.
    """

    image_latents: Float[_Array, "b h w c"]
    noise_latents: Float[_Array, "b h w c"]
    image_weight: Float32[_Array, " b"]
    mask: Float32[_Array, "b h w 1"] | None
    fill: Int32[_Array, " b"]
    fill_noise: Float[_Array, "b h w c"] | UInt32[_Array, "b 2"]


@array_group
class NoisedImageInputs:
    """Images to which noise is added, as the x4 upscaler's UNet sees them.

    signal: the share of the image; `sigma`: that of the noise.
    noise: standard normal, or seeds of it.
    """

    pixels: UInt8[_Array, "b y x 3"]
    signal: Float32[_Array, " b"]
    sigma: Float32[_Array, " b"]
    noise: Float[_Array, "b y x 3"] | UInt32[_Array, "b 2"]
