"""Classifiers of noisy latents, whose gradient can guide images: any function of a user's, or one from a folder."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdjax.checkpoints.digests import digest_files
from sdjax.checkpoints.json_file import read_json
from sdjax.checkpoints.name_table import NameTable
from sdjax.checkpoints.tensors import (
    CheckpointError,
    Params,
    ParamTensor,
    check_layers,
    check_tensors,
    list_tensors,
    load_params,
)
from sdjax.diffusion.guidance import LogProbability
from sdjax.families.network import floats, random_key
from sdjax.library.finding import hint
from sdjax.library.library import find_place
from sdjax.models.classifier import NoiseClassifier, NoiseClassifierConfig

# The files of a folder. `LABELS` has a name in each line, in the order of the network's outputs.
FILES = CONFIG, LABELS, WEIGHTS = "config.json", "labels.txt", "model.safetensors"


class Classifier(NamedTuple):
    """A classifier of noisy latents, for guidance.

    log_probability: (latents of unit variance, timesteps, labels, params) -> log p(label | latents), by image; pure.
    params: arrays that it takes.
    labels: what they are called, in their order.
    digest: of all that decides what it gives; part of the fingerprint of images that it guides.
    """

    log_probability: LogProbability
    params: Any
    labels: tuple[str, ...]
    digest: str


class ClassifierLabels(NamedTuple):
    """What planning needs of a classifier: `labels` and `digest` as of `Classifier`."""

    labels: tuple[str, ...]
    digest: str


class ClassifierFile(NamedTuple):
    """A classifier in a folder, of which no weights were read.

    tensors: of `shapes`, in the order of its leaves.
    """

    root: Path
    config: NoiseClassifierConfig
    labels: tuple[str, ...]
    tensors: list[ParamTensor]
    shapes: Params


def label_named(classifier: Classifier, name: str) -> int:
    """The label of that name, which is a job's `classifier_label`.

    Raises:
      ValueError: if there is none; it suggests the nearest names.
    """
    if name in classifier.labels:
        return classifier.labels.index(name)
    others = f": it knows {len(classifier.labels)} others"
    raise ValueError(f"the classifier has no label {name!r}{hint(name, classifier.labels, 3) or others}")


def read_classifier(name: str | Path) -> ClassifierFile:
    """Reads a classifier but for its weights; arguments and errors are those of `load_classifier`."""
    root = find_place(name, "classifier", "classifier")
    if not root.is_dir():
        raise CheckpointError(f"{root} is a file; a classifier is a folder of {CONFIG}, {LABELS} and {WEIGHTS}")
    for file in (root / part for part in FILES):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; a classifier is {CONFIG}, {LABELS} and {WEIGHTS} in one folder")
    config = NoiseClassifierConfig.from_json(read_json(root / CONFIG), str(root / CONFIG))
    labels = _read_labels(root / LABELS, config.labels)
    tensors = list_tensors([root / WEIGHTS])
    check_layers(config.layers, tensors, str(root))
    latents, timesteps = floats(1, 1, 1, config.in_channels), floats(1)
    shapes = jax.eval_shape(NoiseClassifier(config).init, random_key(), latents, timesteps)["params"]
    return ClassifierFile(root, config, labels, check_tensors(tensors, shapes, NameTable(), str(root)), shapes)


def load_classifier(name: str | Path) -> Classifier:
    """Loads a classifier for `sdjax.Engine`.

    Args:
      name: a bundled one, called as the model whose latents it knows ("emoji"), or the path of a folder with
        `config.json`, `labels.txt` and `model.safetensors`, as `sdjax.training.noise_classifier` writes it.

    Raises:
      CheckpointError: if there is no such folder, or its files are not whole or don't fit together.
      ConfigError: if its config asks for what is not implemented.
    """
    found = read_classifier(name)
    network, params = NoiseClassifier(found.config), load_params(found.tensors, found.shapes, jnp.float32)

    def log_probability(
        latents: Float[Array, "b h w c"], timesteps: Float[Array, " b"], labels: Int[Array, " b"], params: Any
    ) -> Float[Array, " b"]:
        logits = network.apply({"params": params}, latents, timesteps)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    files = [found.root / part for part in FILES]
    return Classifier(log_probability, params, found.labels, digest_files(found.root, files))


def _read_labels(file: Path, count: int) -> tuple[str, ...]:
    try:
        labels = tuple(line.strip() for line in file.read_text("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 ({error})") from error
    if len(labels) != count:
        raise CheckpointError(f"{file} has {len(labels)} labels, {CONFIG} beside it says {count}")
    if len(set(labels)) != count or "" in labels:
        raise CheckpointError(f"{file}: expected a different name in each line, found an empty or repeated one")
    return labels
