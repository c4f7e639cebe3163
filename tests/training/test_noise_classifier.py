import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sdjax
from sdjax.models.classifier import NoiseClassifier, NoiseClassifierConfig
from sdjax.training import noise_classifier as nc
from sdjax.training import scenes, state
from sdjax.training.latent_diffusion import LatentSet

NAMES = ("red apple", "owl", "brick")
SIZES = NoiseClassifierConfig(in_channels=4, labels=len(NAMES), sample_size=4, width=16, layers=1, time_channels=8)


def clusters(count: int = 120) -> tuple[LatentSet, nc.Rows, nc.Rows]:
    """Latents about one mean for each label, with rows to train on and others to measure with."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((len(NAMES), 4, 4, 4))
    labels = np.arange(count, dtype=np.int32) % len(NAMES)
    near = (means[labels] + 0.3 * rng.standard_normal((count, 4, 4, 4))).astype(np.float16)
    ids = np.zeros((count, 1), np.int16)
    data = LatentSet(near, np.full_like(near, 0.01), ids, ids[0], 1.0)
    rows, half = np.arange(count), count // 2
    return data, nc.Rows(rows[:half], labels[:half]), nc.Rows(rows[half:], labels[half:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, state.Params]:
    """The folder of a short run, and what it has learnt."""
    folder = tmp_path_factory.mktemp("state")
    recipe = state.Recipe(steps=60, learning_rate=1e-2, warmup=5, average=0.8)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes kinds of numbers
        return folder, nc.train(folder, SIZES, *clusters(), recipe=recipe, batch=32)


def test_rows_are_labelled_as_the_scenes_that_were_encoded():
    images = (Image.new("RGBA", (96, 96), "red"),) * len(scenes.concepts())
    encoded = nc.encoded_scenes(30, len(images))
    drawn = itertools.islice(scenes.examples(nc.TRAIN_SEED, images), 30)
    assert encoded == tuple(scene for _, _, scene in drawn)


def test_no_held_out_scene_is_trained_on_however_often_it_was_drawn():
    drawn = nc.encoded_scenes(2000, 5)
    train, held_out = nc.split_scenes(drawn, one_in=10)
    assert not {drawn[row] for row in train.rows} & {drawn[row] for row in held_out.rows}
    single = [row for row, scene in enumerate(drawn) if len(scene.concepts) == 1]
    assert sorted([*train.rows, *held_out.rows]) == single
    for rows, labels in (train, held_out):
        assert [drawn[row].concepts for row in rows] == [(label,) for label in labels]
    different = len({drawn[row] for row in single})
    assert len({drawn[row] for row in held_out.rows}) == -(-different // 10)


def test_noise_keeps_the_variance_and_grows_until_it_is_nearly_all():
    latents, noise = np.random.default_rng(0).standard_normal((2, 1, 64, 64, 4)).astype(np.float32)

    def at(timestep: int) -> np.ndarray:
        return np.asarray(nc.noised(nc.SCHEDULER, jnp.asarray(latents), jnp.array([timestep]), jnp.asarray(noise)))

    for timestep in (0, 300, 600, 999):
        np.testing.assert_allclose(at(timestep).std(), 1, atol=0.02)
    shares = [np.corrcoef(at(timestep).ravel(), noise.ravel())[0, 1] for timestep in (0, 300, 600, 999)]
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] > 0.99


def test_batches_go_on_where_a_run_was_stopped():
    data, chosen, _ = clusters()
    whole, rest = nc.batches(data, chosen, 8, 0), nc.batches(data, chosen, 8, 2)
    for expected, found in zip(next(itertools.islice(whole, 2, None)), next(rest), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_short_training_knows_clean_latents_and_guesses_in_pure_noise(trained):
    data, _, held_out = clusters()
    clean, half, noise = nc.accuracy_by_timestep(
        NoiseClassifier(SIZES), nc.SCHEDULER, trained[1], data, held_out, (0, 500, 999), 2
    )
    assert clean > 0.95 and clean >= half > noise and noise < 0.75


def test_a_step_along_the_gradient_makes_each_label_likelier(trained, tmp_path: Path):
    nc.export(state.averaged(trained[0] / nc.FILE), SIZES, NAMES, tmp_path)
    classifier = sdjax.load_classifier(tmp_path)
    latents = jax.random.normal(jax.random.key(0), (30, 4, 4, 4))
    timesteps, labels = jnp.linspace(0.0, 700.0, 30), jnp.arange(30) % len(NAMES)

    def log_probabilities(latents: jax.Array) -> jax.Array:
        return classifier.log_probability(latents, timesteps, labels, classifier.params)

    gradient = jax.grad(lambda latents: log_probabilities(latents).sum())(latents)
    assert jnp.all(log_probabilities(latents + 0.01 * gradient) > log_probabilities(latents))


def test_what_is_exported_is_what_was_trained_in_half_precision(trained, tmp_path: Path):
    folder, params = trained
    nc.export(state.averaged(folder / nc.FILE), SIZES, NAMES, tmp_path)
    classifier = sdjax.load_classifier(tmp_path)
    assert classifier.labels == NAMES
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, classifier.params, rounded)


def test_a_measure_without_a_training_says_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="run the stage train first"):
        state.averaged(tmp_path / nc.FILE)


def test_accuracies_are_a_markdown_table_with_the_level_of_noise():
    assert nc.table(nc.SCHEDULER, (0, 999), (0.985, 0.01)).splitlines() == [
        "| timestep | sigma | concept recognised |",
        "|---:|---:|---:|",
        "| 0 | 0.03 | 98.5 % |",
        "| 999 | 14.61 | 1.0 % |",
    ]
