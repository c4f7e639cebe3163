"""Guidance by a classifier: the guidance itself, a user's own function, and classifiers from folders."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sdjax
from sdjax.checkpoints.name_table import NameTable
from sdjax.checkpoints.tensors import write_params
from sdjax.diffusion.guidance import classifier_guided
from sdjax.engine.engine import Engine
from sdjax.library.classifier import CONFIG, LABELS, WEIGHTS
from sdjax.models.classifier import NoiseClassifier, NoiseClassifierConfig
from sdjax.training import scenes
from sdjax.training.recognition import background
from tests.results import make, same
from tests.toys import random_params

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "sdjax" / "assets" / "emoji" / "noise_classifier"
NAMES = ("apple", "cat", "dog")
# For latents of the toys.
SIZES = NoiseClassifierConfig(in_channels=4, labels=len(NAMES), width=16, layers=2, time_channels=8)
JOB = sdjax.Job(prompt="a cat", seed=0, steps=5, sampler="euler", guidance_scale=2.0)
GUIDED = dataclasses.replace(JOB, classifier_scale=3.0, classifier_label=1)


def param_shapes(config: NoiseClassifierConfig) -> Any:
    latents = jnp.zeros((1, 8, 8, config.in_channels))
    return jax.eval_shape(NoiseClassifier(config).init, jax.random.key(0), latents, jnp.zeros(1))["params"]


def write_classifier(folder: Path, config: NoiseClassifierConfig = SIZES, labels: tuple[str, ...] = NAMES) -> Path:
    """A classifier with random weights; gives the folder."""
    params = random_params(param_shapes(config), np.random.RandomState(0))
    write_params(params, NameTable(), folder / WEIGHTS, jnp.float16)
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(config)))
    (folder / LABELS).write_text("\n".join(labels))
    return folder


# What guidance does to the denoised latents.


@settings(deadline=None, max_examples=30)
@given(st.floats(0.03, 15), st.floats(0.3, 3), st.floats(0.3, 3), st.lists(st.floats(-4, 4), min_size=4, max_size=4))
def test_with_the_exact_log_probability_scale_one_gives_the_exact_conditional_denoiser(sigma, data, error, seen):
    """Latents normal about 0, and a label that tells what they are with a normal error: Bayes' rule is known.

    Of x = x0 + sigma * noise the denoised latents are normal about x * d^2 / (d^2 + sigma^2), with variance
    v = d^2 * sigma^2 / (d^2 + sigma^2); and if y = x0 + error is known too, about what the precisions 1 / v and
    1 / error^2 weigh.
    """
    variance = data**2 * sigma**2 / (data**2 + sigma**2)
    targets = np.array(seen, np.float32)
    latents = np.random.default_rng(0).standard_normal((4, 2, 2, 3)).astype(np.float32) * math.hypot(data, sigma)

    def denoised(noisy: Any) -> Any:
        return noisy * np.float32(data**2 / (data**2 + sigma**2))

    def log_probability(unit: Any, timesteps: Any, labels: Any, params: Any) -> Any:
        noisy = unit * jnp.sqrt(timesteps**2 + 1)[:, None, None, None]  # here a timestep is its sigma
        distance = params[labels][:, None, None, None] - denoised(noisy)
        return -(distance**2).sum(axis=(1, 2, 3)) / np.float32(2 * (variance + error**2))

    found = classifier_guided(
        jnp.asarray(denoised(latents)),
        jnp.asarray(latents),
        jnp.full(4, sigma, jnp.float32),
        jnp.full(4, 1 / math.sqrt(sigma**2 + 1), jnp.float32),
        jnp.full(4, sigma, jnp.float32),
        jnp.arange(4),
        jnp.ones(4),
        log_probability,
        jnp.asarray(targets),
    )
    precise, known = 1 / variance, 1 / error**2
    expected = (precise * denoised(latents) + known * targets[:, None, None, None]) / (precise + known)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.03, 15), st.floats(-10, 10), st.floats(0.5, 5))
def test_the_denoised_latents_move_by_scale_times_the_gradient_of_a_users_function(sigma, scale, deviation):
    rng = np.random.default_rng(1)
    denoised, latents = rng.standard_normal((2, 3, 2, 2, 4)).astype(np.float32)
    means = rng.standard_normal((5, 4)).astype(np.float32)
    labels = np.array([4, 0, 2])

    def log_probability(unit: Any, timesteps: Any, labels: Any, params: Any) -> Any:
        distance = unit - params[labels][:, None, None]
        return -0.5 * (distance**2).sum(axis=(1, 2, 3)) / np.float32(deviation**2)

    found = classifier_guided(
        jnp.asarray(denoised),
        jnp.asarray(latents),
        jnp.full(3, sigma, jnp.float32),
        jnp.full(3, 1 / math.sqrt(sigma**2 + 1), jnp.float32),
        jnp.zeros(3),
        jnp.asarray(labels),
        jnp.full(3, scale, jnp.float32),
        log_probability,
        jnp.asarray(means),
    )
    # By hand: the slope of the log density where the classifier looks, and how far that moves with the latents.
    shrunk = 1 / math.sqrt(sigma**2 + 1)
    slope = (means[labels][:, None, None] - latents * shrunk) / deviation**2
    expected = denoised + scale * sigma**2 * shrunk * slope
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * (1 + abs(scale)))


# The engine with a classifier.


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> sdjax.Classifier:
    """Of the toy's latents, with random weights."""
    return sdjax.load_classifier(write_classifier(tmp_path_factory.mktemp("classifier")))


@pytest.fixture(scope="module")
def engine(tiny: sdjax.Model, classifier: sdjax.Classifier) -> Engine:
    return Engine(tiny, batch_size=2, classifier=classifier)


@pytest.fixture(scope="module")
def compiled() -> list[Any]:
    """What `alone` has compiled so far."""
    return []


@pytest.fixture(scope="module")
def alone(tiny: sdjax.Model, classifier: sdjax.Classifier, compiled: list[Any]) -> Engine:
    """On one device."""
    devices = jax.local_devices()[:1]
    return Engine(tiny, batch_size=2, devices=devices, classifier=classifier, on_compile=compiled.append)


def variants(count: int) -> list[sdjax.Job]:
    """Jobs that share a batch and differ in all that a classifier sees."""
    return [
        dataclasses.replace(
            GUIDED, seed=index, steps=3 + index, classifier_scale=2.0 + index, classifier_label=index % 3
        )
        for index in range(count)
    ]


def test_a_guided_image_depends_on_neither_order_nor_neighbours(engine):
    jobs = variants(8)
    whole = make(engine, jobs)
    assert len({result.image.tobytes() for result in whole}) == len(jobs)
    for chosen in ([5], [3, 2, 1], [7, 0, 6, 4, 1]):
        assert same(make(engine, [jobs[index] for index in chosen]), [whole[index] for index in chosen])


def test_a_guided_image_does_not_depend_on_the_number_of_devices(engine, alone):
    jobs = variants(8)
    assert same(make(alone, jobs), make(engine, jobs))


def test_scale_and_label_do_not_compile_a_second_program(alone, compiled):
    make(alone, variants(4))
    assert len(compiled) == 1 and compiled[0].classifier


def test_a_job_of_scale_zero_is_done_as_if_there_were_no_classifier(tiny, engine):
    assert same(make(engine, [JOB]), make(Engine(tiny, batch_size=2), [JOB]))


def test_another_classifier_gives_another_id(tiny, engine, classifier):
    other = Engine(tiny, batch_size=2, classifier=classifier._replace(digest="other"))
    assert engine.prepare(GUIDED).id != other.prepare(GUIDED).id
    assert engine.prepare(JOB).id == other.prepare(JOB).id
    assert engine.prepare(GUIDED).metadata["classifier_digest"] == classifier.digest


def test_a_users_own_function_draws_images_towards_what_it_finds_likely(tiny):
    """A normal density about one latent colour for each label: images of one label come together."""
    colors = np.array([[2, -2, 2, -2], [-2, 2, -2, 2]], np.float32)

    def log_probability(latents: Any, timesteps: Any, labels: Any, params: Any) -> Any:
        return -((latents - params[labels][:, None, None]) ** 2).sum(axis=(1, 2, 3))

    towards = sdjax.Classifier(log_probability, jnp.asarray(colors), ("one", "other"), digest="two colours")
    engine = Engine(tiny, batch_size=2, devices=jax.local_devices()[:1], classifier=towards)

    def images(scale: float, label: int) -> np.ndarray:
        jobs = [dataclasses.replace(JOB, seed=seed, classifier_scale=scale, classifier_label=label) for seed in (0, 1)]
        return np.stack([result.image for result in make(engine, jobs)]).astype(float)

    def spread(images: np.ndarray) -> float:
        return float(np.abs(images[0] - images[1]).mean())

    weak, strong, other = images(1e-3, 0), images(0.5, 0), images(0.5, 1)
    assert spread(strong) < 0.5 * spread(weak)
    assert np.abs(strong - other).mean() > 2 * max(spread(strong), spread(other))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"classifier_label": 3}, "classifier_label = 3: expected a number from 0 to 2"),
        ({"classifier_label": None}, "classifier_scale = 3.0: expected classifier_label with it"),
    ],
)
def test_a_label_that_is_not_there_is_an_error(engine, change, message):
    with pytest.raises(sdjax.JobError, match=re.escape(message)):
        engine.prepare(dataclasses.replace(GUIDED, **change))


def test_a_job_for_a_classifier_is_an_error_where_there_is_none(tiny):
    with pytest.raises(sdjax.JobError, match=re.escape("classifier_scale = 3.0: there is no classifier")):
        Engine(tiny).prepare(GUIDED)


def test_a_classifier_of_other_latents_is_an_error(tiny):
    engine = Engine(tiny, batch_size=1, devices=jax.local_devices()[:1], classifier=sdjax.load_classifier("emoji"))
    with pytest.raises(ValueError, match="for latents of 12 channels, these have 4: it was made for another model"):
        make(engine, [GUIDED])


# Classifiers from folders.


def test_the_network_is_small_and_takes_latents_of_any_size():
    config = sdjax.models.classifier.NoiseClassifierConfig.from_json(json.loads((BUNDLED / CONFIG).read_bytes()))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config))) <= 700_000
    params = random_params(param_shapes(SIZES), np.random.RandomState(0))
    for height, width in ((8, 8), (4, 16), (5, 7), (1, 1)):
        latents = jnp.ones((2, height, width, 4))
        logits = NoiseClassifier(SIZES).apply({"params": params}, latents, jnp.array([0.0, 900.0]))
        assert logits.shape == (2, 3) and jnp.isfinite(logits).all()
        assert not jnp.allclose(logits[0], logits[1]), "the timestep is heeded"


def test_the_bundled_classifier_knows_the_concepts_of_the_embedded_model():
    classifier = sdjax.load_classifier("emoji")
    assert classifier.labels == tuple(concept.name for concept in scenes.concepts())
    assert classifier.digest == sdjax.load_classifier(BUNDLED).digest
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) <= 1_500_000


def test_the_classifier_beside_a_model_does_not_change_the_models_digest(tmp_path: Path):
    for part in BUNDLED.parent.iterdir():
        if part != BUNDLED:
            (tmp_path / part.name).symlink_to(part)
    assert sdjax.load(tmp_path).digest == sdjax.load("emoji").digest


def test_the_files_of_the_classifier_are_packed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    assert all(any(file.match(pattern) for pattern in patterns) for file in BUNDLED.iterdir())


def test_the_digest_follows_every_file(tmp_path: Path):
    folder = write_classifier(tmp_path)
    before = sdjax.load_classifier(folder).digest
    assert re.fullmatch("[0-9a-f]{64}", before)
    write_classifier(folder, labels=("apple", "cat", "wolf"))
    assert sdjax.load_classifier(folder).digest != before


def test_log_probabilities_are_those_of_a_distribution(classifier):
    latents = jax.random.normal(jax.random.key(0), (3, 8, 8, 4))
    values = classifier.log_probability(
        jnp.repeat(latents[:1], 3, axis=0), jnp.full(3, 500.0), jnp.arange(3), classifier.params
    )
    np.testing.assert_allclose(jnp.exp(values).sum(), 1, rtol=1e-5)


def test_labels_are_found_by_their_names(classifier):
    assert [sdjax.label_named(classifier, name) for name in NAMES] == [0, 1, 2]


def test_a_name_that_is_no_label_is_an_error_that_suggests_others(classifier):
    with pytest.raises(ValueError, match="no label 'Aple'; did you mean 'apple'"):
        sdjax.label_named(classifier, "Aple")
    with pytest.raises(ValueError, match="no label 'xylophone': it knows 3 others"):
        sdjax.label_named(classifier, "xylophone")


def test_a_classifier_that_is_not_there_is_an_error():
    with pytest.raises(
        sdjax.CheckpointError, match=r"no classifier 'emojy': it is neither bundled \(emoji\) nor a fold"
    ):
        sdjax.load_classifier("emojy")


@pytest.mark.parametrize("name", [CONFIG, LABELS, WEIGHTS])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str):
    (write_classifier(tmp_path) / name).unlink()
    with pytest.raises(sdjax.CheckpointError, match=f"{name} is missing; a classifier is config.json, labels.txt and"):
        sdjax.load_classifier(tmp_path)


def spoil(folder: Path, change: Mapping[str, Any]) -> None:
    config = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps({**config, **change}))


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"in_channels": 5}, sdjax.CheckpointError, "wrong: linear_in.weight is (16, 256), not (16, 320)"),
        ({"layers": 3}, sdjax.CheckpointError, "missing: adapted_2.norm.bias"),
        ({"layers": 1}, sdjax.CheckpointError, "left over: adapted_1.norm.bias"),
        ({"labels": 4}, sdjax.CheckpointError, "labels.txt has 3 labels, config.json beside it says 4"),
        ({"labels": 0}, sdjax.ConfigError, "config.json: labels = 0 is not positive"),
        ({"width": "wide"}, sdjax.ConfigError, "config.json: width = 'wide' is not of the type int"),
        ({"dropout": 0.1}, sdjax.ConfigError, "unknown key 'dropout'"),
    ],
)
def test_files_that_do_not_fit_together_are_an_error(tmp_path: Path, change, kind, message):
    spoil(write_classifier(tmp_path), change)
    with pytest.raises(kind, match=re.escape(message)):
        sdjax.load_classifier(tmp_path)


@pytest.mark.parametrize("labels", [b"apple\ncat\ncat", b"apple\n\ndog"])
def test_labels_without_a_name_of_their_own_are_an_error(tmp_path: Path, labels: bytes):
    (write_classifier(tmp_path) / LABELS).write_bytes(labels)
    with pytest.raises(sdjax.CheckpointError, match="expected a different name in each line"):
        sdjax.load_classifier(tmp_path)


def test_labels_that_are_no_text_are_an_error(tmp_path: Path):
    (write_classifier(tmp_path) / LABELS).write_bytes(b"apple\n\xff\ndog")
    with pytest.raises(sdjax.CheckpointError, match=r"labels\.txt is not UTF-8"):
        sdjax.load_classifier(tmp_path)


def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path):
    folder = shutil.copytree(BUNDLED, tmp_path / "cut")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(sdjax.CheckpointError, match="can't be read as safetensors"):
        sdjax.load_classifier(folder)


# On the embedded model.


@pytest.fixture(scope="module")
def guided_emoji() -> Mapping[float, list[float]]:
    """By scale, the log probabilities of six labels, each of its guided image's latents without noise."""
    model, classifier = sdjax.load("emoji"), sdjax.load_classifier("emoji")
    engine = Engine(model, batch_size=6, devices=jax.local_devices()[:1], classifier=classifier)
    labels = [sdjax.label_named(classifier, name) for name in ("red apple", "panda", "owl", "rose", "bus", "red heart")]
    asked = {"prompt": "an emoji", "guidance_scale": 1.0, "steps": 10, "sampler": "dpmpp_2m"}
    found = {}
    for scale in (0.1, 4.0, 32.0):
        jobs = [
            sdjax.Job(**asked, seed=seed, classifier_scale=scale, classifier_label=k) for seed, k in enumerate(labels)
        ]
        pixels = np.stack([result.image for result in make(engine, jobs)]).astype(np.float32)
        latents = model.vae.apply(
            {"params": model.params["vae"]}, jnp.asarray(pixels / 127.5 - 1), method="encode"
        ).mean
        log_probabilities = classifier.log_probability(
            latents * model.vae.config.scaling_factor, jnp.zeros(6), jnp.array(labels), classifier.params
        )
        found[scale] = log_probabilities.tolist()
    return found


@pytest.mark.slow
def test_the_label_grows_likelier_with_the_scale(guided_emoji):
    means = [float(np.mean(values)) for _, values in sorted(guided_emoji.items())]
    assert means[0] + 2 < means[1] and means[1] + 0.2 < means[2], means


# What the docs say.


@pytest.mark.slow
def test_the_example_draws_a_sheet(tmp_path: Path):
    file = tmp_path / "sheet.png"
    options = ["--labels", "panda", "rose", "--scales", "0", "8", "--steps", "3"]
    subprocess.run([sys.executable, "examples/classifier_guidance.py", str(file), *options], cwd=ROOT, check=True)
    with Image.open(file) as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 2 * 128


@pytest.mark.slow
def test_the_python_of_the_docs_runs():
    """The example of a user's own function gives the backgrounds that it asks for."""
    own, bundled = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guidance.md").read_text("utf-8"), re.S)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        named: dict[str, Any] = {}
        exec(own, named)
        assert {name: background(image) for name, image in zip(("red", "blue"), named["images"], strict=False)} == {
            "red": "red",
            "blue": "blue",
        }
        exec(bundled, named)
    assert named["result"].finite
