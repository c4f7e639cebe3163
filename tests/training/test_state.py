import errno
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.training.state import Recipe, TrainState, learning_rate, make_update, quiet_branches, restore, run, save

STEPS, BATCH = 12, 8
RECIPE = Recipe(steps=STEPS, learning_rate=0.05, warmup=2)
SEED = 3


def loss(params, batch, key):
    """A line through points, seen through noise that is drawn anew in each step."""
    x, y = batch
    found = params["slope"] * x + params["offset"] + 0.1 * jax.random.normal(key, x.shape)
    value = ((found - y) ** 2).mean()
    return value, {"slope": params["slope"][0]}


def begin():
    return {"slope": jnp.zeros(1), "offset": jnp.full(1, 0.5)}


def batches(first):
    for step in itertools.count(first):
        x = np.random.default_rng([7, step]).standard_normal(BATCH).astype(np.float32)
        yield x, 2 * x - 1


def trained(path, *, steps=STEPS, recipe=RECIPE, source=batches, save_every=4, on_save=None):
    """A run of `steps`, from what is at `path` on."""
    init, update = make_update(loss, recipe, SEED)
    state = restore(path, init(begin()))
    return run(update, state, source, steps=steps, path=path, title="test", save_every=save_every, on_save=on_save)


def assert_same(one, two):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """optax multiplies counts of steps with rates."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    return jax.device_get(trained(tmp_path_factory.mktemp("whole") / "state.msgpack"))


def test_a_run_that_is_stopped_and_continued_ends_as_one_that_is_not(tmp_path, whole):
    path = tmp_path / "state.msgpack"
    trained(path, steps=5)
    assert_same(trained(path), whole)


def test_a_run_that_is_killed_goes_on_from_its_last_save(tmp_path, whole):
    path = tmp_path / "state.msgpack"

    def interrupted(first):
        yield from itertools.islice(batches(first), 6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(path, source=interrupted)
    init, _ = make_update(loss, RECIPE, SEED)
    assert int(restore(path, init(begin())).step) == 4
    assert_same(trained(path), whole)


def test_a_finished_run_stays_as_it_is(tmp_path, whole):
    path = tmp_path / "state.msgpack"
    trained(path)
    assert_same(trained(path), whole)


def test_a_run_is_saved_at_regular_steps_and_at_its_end(tmp_path):
    saved = []
    trained(tmp_path / "state.msgpack", save_every=5, on_save=lambda state: saved.append(int(state.step)))
    assert saved == [5, 10, 12]
    assert [path.name for path in tmp_path.iterdir()] == ["state.msgpack"]


def test_batches_are_asked_for_from_the_step_at_which_the_run_goes_on(tmp_path):
    asked = []

    def source(first):
        asked.append(first)
        return batches(first)

    path = tmp_path / "state.msgpack"
    trained(path, steps=3, source=source)
    trained(path, source=source)
    assert asked == [0, 3]


def test_nothing_to_restore_leaves_the_new_state(tmp_path):
    init, _ = make_update(loss, RECIPE, SEED)
    fresh = init(begin())
    assert restore(tmp_path / "state.msgpack", fresh) is fresh


def test_what_is_saved_comes_back_to_the_bit(tmp_path, whole):
    path = tmp_path / "deeper" / "state.msgpack"
    save(path, TrainState(*jax.tree.map(jnp.asarray, whole)))
    init, _ = make_update(loss, RECIPE, SEED)
    assert_same(restore(path, init(begin())), whole)


def test_a_save_that_fails_leaves_the_one_before(tmp_path, whole, monkeypatch):
    path = tmp_path / "state.msgpack"
    save(path, whole)

    def full(file: Path, data: bytes) -> int:
        with file.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no room"):
        save(path, whole)
    init, _ = make_update(loss, RECIPE, SEED)
    assert_same(restore(path, init(begin())), whole)


def test_training_finds_the_line(tmp_path):
    recipe = Recipe(steps=200, learning_rate=0.1, warmup=5, weight_decay=0.0)
    state = trained(tmp_path / "state.msgpack", steps=200, recipe=recipe, save_every=200)
    for params in (state.params, state.average):
        np.testing.assert_allclose(params["slope"], 2, atol=0.1)
        np.testing.assert_allclose(params["offset"], -1, atol=0.1)


def test_an_average_over_no_past_is_the_parameters(tmp_path):
    state = trained(tmp_path / "state.msgpack", recipe=RECIPE._replace(average=0.0))
    assert_same(state.average, state.params)


def test_the_average_trails_behind_parameters_that_go_one_way():
    init, update = make_update(loss, RECIPE, SEED)
    state, source = init(begin()), batches(0)
    visited = [state.params["slope"].item()]
    for _ in range(6):
        state, _ = update(state, next(source))
        visited.append(state.params["slope"].item())
        if visited[-1] != visited[0]:
            assert min(visited) < state.average["slope"].item() < max(visited)
    assert visited == sorted(visited)


def test_each_step_has_noise_of_its_own_that_the_seed_decides():
    batch = next(batches(0))

    def first_loss(seed, step):
        init, update = make_update(loss, RECIPE, seed)
        _, report = update(init(begin())._replace(step=jnp.asarray(step, jnp.int32)), batch)
        return report["loss"].item()

    assert first_loss(1, 0) == first_loss(1, 0)
    assert len({first_loss(1, 0), first_loss(1, 1), first_loss(2, 0)}) == 3


def test_the_learning_rate_rises_stays_and_falls_to_a_fiftieth():
    rate = learning_rate(Recipe(steps=1000, learning_rate=0.1, warmup=100, decay_from=0.5))
    found = [float(rate(step)) for step in (0, 50, 100, 300, 500, 750, 1000)]
    np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1, 0.1, 0.051, 0.002], rtol=1e-5)


def test_quiet_branches_begin_with_the_named_kernels_at_zero():
    params = {"block": {"conv1": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "conv2": {"kernel": jnp.ones(2)}}}
    quiet = quiet_branches(params, ("conv2",))
    assert quiet["block"]["conv2"]["kernel"].tolist() == [0, 0]
    assert_same(quiet["block"]["conv1"], params["block"]["conv1"])


def test_the_batch_is_spread_over_all_devices_and_the_state_is_whole_on_each(tmp_path):
    state = trained(tmp_path / "state.msgpack", steps=2)
    assert len(jax.local_devices()) == 4
    assert state.params["slope"].sharding.is_fully_replicated
    assert state.params["slope"].sharding.device_set == set(jax.local_devices())
