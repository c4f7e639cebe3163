"""LoRA and its family against what lycoris, peft and diffusers made of the same files; and how they are applied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.adapters.lora import Lora, apply, changed, replaced
from sdjax.adapters.lora_changes import Difference, LowRank, Product, factors
from sdjax.checkpoints.name_table import Path
from tests.golden import adapters, networks


@pytest.fixture(scope="module")
def leaves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Path, jax.Array]]:
    """The parameters that each recorded adapter changes."""
    cases = []
    for name, case in adapters.CASES.items():
        file = adapters.write(adapters.recorded()[name].files, tmp_path_factory.mktemp("lora"))
        cases.append((case, adapters.read(case, file)))
    return dict(zip(adapters.CASES, adapters.changed_by(cases), strict=True))


@pytest.mark.parametrize("name", adapters.CASES)
def test_what_the_library_that_wrote_it_made_of_a_file(name: str, leaves: dict[str, dict[Path, jax.Array]]) -> None:
    recorded = adapters.recorded()[name]
    merged, outputs = adapters.given(adapters.CASES[name], leaves[name])
    assert networks.relative_error(adapters.sampled(merged), recorded.merged) < adapters.WEIGHTS_TOLERANCE
    assert networks.relative_error(adapters.sampled(outputs), recorded.outputs) < adapters.OUTPUTS_TOLERANCE


# --- Weights ---

_PATH = ("unet", "a", "kernel")
_TEXT_PATH = ("text_encoder", "b", "kernel")


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _low_rank(seed: int, magnitude: bool = False) -> LowRank:
    lengths = np.abs(_normal(seed + 2, 1, 4)) if magnitude else None
    return LowRank(Product(_normal(seed, 6, 2), _normal(seed + 1, 2, 4)), lengths)


PARAMS = {
    "unet": {"a": {"kernel": _normal(1, 6, 4), "bias": _normal(2, 4)}, "other": {"scale": _normal(3, 4)}},
    "text_encoder": {"b": {"kernel": _normal(4, 6, 4)}},
    "vae": {"c": {"kernel": _normal(5, 2, 2)}},
}
CHANGES = {_PATH: _low_rank(10), _TEXT_PATH: _low_rank(20)}
LORA = Lora("it", None, "0", "0", CHANGES, {})


def _both(weight: float) -> dict[str, float]:
    return {"unet": weight, "text_encoder": weight}


def test_weight_0_changes_nothing() -> None:
    result = apply(PARAMS, LORA, 0, 0)
    assert all(a is b for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(PARAMS), strict=True))


def test_weight_0_changes_no_bit_where_it_is_an_array() -> None:
    params = {"unet": {"a": {"kernel": np.array([[-0.0, 1e-40], [1.0, -1.0]], np.float32)}}}
    infinite = {_PATH: Difference(np.full((2, 2), np.inf, np.float32))}
    result = jax.jit(changed)(params, [infinite], [{"unet": jnp.float32(0)}])[_PATH]
    assert np.asarray(result).tobytes() == params["unet"]["a"]["kernel"].tobytes()


def test_the_networks_have_weights_of_their_own() -> None:
    result = apply(PARAMS, LORA, 0.5, -2)
    for path, weight in ((_PATH, 0.5), (_TEXT_PATH, -2)):
        product = CHANGES[path].product
        wanted = PARAMS[path[0]][path[1]]["kernel"] + weight * (product.down @ product.up)
        np.testing.assert_allclose(result[path[0]][path[1]]["kernel"], wanted, rtol=1e-5, atol=1e-6)
    assert apply(PARAMS, LORA, 0.5)["vae"] is PARAMS["vae"]
    assert result["unet"]["a"]["bias"] is PARAMS["unet"]["a"]["bias"]


def test_only_one_network_can_be_changed() -> None:
    result = apply(PARAMS, LORA, 0, 1)
    assert result["unet"]["a"]["kernel"] is PARAMS["unet"]["a"]["kernel"]
    assert not np.array_equal(result["text_encoder"]["b"]["kernel"], PARAMS["text_encoder"]["b"]["kernel"])


def test_adapters_act_one_after_the_other() -> None:
    first, second = {_PATH: _low_rank(30)}, {_PATH: _low_rank(40, magnitude=True)}
    together = changed(PARAMS, [first, second], [_both(0.7), _both(0.4)])
    between = replaced(PARAMS, changed(PARAMS, [first], [_both(0.7)]))
    after = changed(between, [second], [_both(0.4)])
    np.testing.assert_array_equal(together[_PATH], after[_PATH])
    other_order = changed(PARAMS, [second, first], [_both(0.4), _both(0.7)])
    assert not np.allclose(other_order[_PATH], after[_PATH], atol=1e-3)


def test_a_weight_multiplies_all_of_what_dora_changes() -> None:
    dora, kernel = {_PATH: _low_rank(40, magnitude=True)}, PARAMS["unet"]["a"]["kernel"]
    whole, half = (changed(PARAMS, [dora], [_both(weight)])[_PATH] for weight in (1.0, 0.5))
    np.testing.assert_allclose(half, (kernel + whole) / 2, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(whole, axis=0, keepdims=True)
    np.testing.assert_allclose(lengths, dora[_PATH].magnitude, rtol=1e-5)


def test_sums_are_rounded_once_to_what_the_parameters_are() -> None:
    halves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    adapters_ = [{_PATH: _low_rank(seed)} for seed in (30, 40, 50)]
    weights = [_both(0.3)] * 3
    result = changed(halves, adapters_, weights)[_PATH]
    assert result.dtype == jnp.bfloat16
    exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), halves)
    np.testing.assert_array_equal(result, changed(exact, adapters_, weights)[_PATH].astype(jnp.bfloat16))


def test_factors_of_a_product_with_a_middle_are_a_convolution_and_a_linear_layer() -> None:
    product = Product(_normal(1, 5, 2), _normal(2, 3, 4), _normal(3, 3, 3, 2, 3))
    down, up = factors(product)
    assert (down.shape, up.shape) == ((3, 3, 5, 3), (3, 4))
    wanted = np.einsum("ir,hwrs->hwis", product.down, product.middle)
    np.testing.assert_allclose(down, wanted, rtol=1e-5, atol=1e-6)
