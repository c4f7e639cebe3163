"""A training run that can be stopped at any moment and continued."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Params = Any
Batch = Any


class TrainState(NamedTuple):
    """All that a run carries from step to step; batches and noise follow from `step` alone."""

    step: Int[Array, ""]
    params: Params
    average: Params  # exponential moving average of the parameters: what is used afterwards
    optimizer: optax.OptState


class Recipe(NamedTuple):
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    warmup: int = 300
    decay_from: float = 0.6  # the share of the steps after which the rate falls to its end
    weight_decay: float = 0.01
    average: float = 0.999


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Warm-up, constant, then a straight line to a fiftieth: a run can be made longer until it falls."""
    turn = int(recipe.steps * recipe.decay_from)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup),
            optax.constant_schedule(recipe.learning_rate),
            optax.linear_schedule(recipe.learning_rate, recipe.learning_rate / 50, recipe.steps - turn),
        ],
        [recipe.warmup, turn],
    )


def quiet_branches(params: Params, last: tuple[str, ...]) -> Params:
    """Sets the kernels of modules so named to zero: the last of each residual branch.

    The network then begins as the sum of its shortcuts, and learns much faster at first (Zhang et al. 2019,
    arXiv:1901.09321).
    """

    def quiet(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [key.key for key in path]
        return jnp.zeros_like(leaf) if names[-1] == "kernel" and names[-2] in last else leaf

    return jax.tree.map_with_path(quiet, params)


def make_update(
    loss: Callable[[Params, Batch, Array], tuple[Float[Array, ""], dict[str, Array]]], recipe: Recipe, seed: int
) -> tuple[Callable[[Params], TrainState], Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]]:
    """Builds (init, update) for `loss(params, batch, key) -> (value, report)`, with AdamW and clipping."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate(recipe), b2=0.99, weight_decay=recipe.weight_decay),
    )

    def init(params: Params) -> TrainState:
        average = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params))

    @jax.jit(donate_argnums=0)
    def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, report), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early on the average follows quickly (as in Karras et al. 2022).
        decay = jnp.minimum(recipe.average, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.average, params)
        return TrainState(state.step + 1, params, average, opt_state), {"loss": value, **report}

    return init, update


def on_devices(arrays: Any, spec: PartitionSpec) -> Any:
    """Arrays on all local devices, seen as a line named "data"."""
    return jax.device_put(arrays, NamedSharding(Mesh(jax.local_devices(), ("data",)), spec))


def save(path: Path, state: TrainState) -> None:
    """Writes the whole state; a stop in the middle leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(flax.serialization.to_bytes(state))
    temporary.replace(path)


def restore(path: Path, state: TrainState) -> TrainState:
    """The state saved at `path`, or `state` if nothing is there yet."""
    if not path.is_file():
        return state
    return jax.tree.map(jnp.asarray, flax.serialization.from_bytes(state, path.read_bytes()))


def averaged(path: Path) -> Params:
    """The averaged parameters of the run that was saved there.

    Raises:
      FileNotFoundError: if none was.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run the stage train first, with the same --state")
    return flax.serialization.msgpack_restore(path.read_bytes())["average"]


def run(
    update: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]],
    state: TrainState,
    batches: Callable[[int], Iterator[Batch]],
    *,
    steps: int,
    path: Path,
    title: str,
    save_every: int = 500,
    on_save: Callable[[TrainState], None] | None = None,
) -> TrainState:
    """Trains from `state` to `steps`, saving to `path`; `batches(first)` starts at a step's batch.

    Each batch is spread over all local devices, which must divide it; every device holds the whole state.
    """
    first = int(state.step)
    state = on_devices(state, PartitionSpec())
    source = (on_devices(batch, PartitionSpec("data")) for batch in batches(first))
    running: dict[str, float] = {}
    with _bar() as bar:
        task = bar.add_task(title, completed=first, total=steps, losses="")
        for step in range(first, steps):
            state, report = update(state, next(source))
            if step % 20 == 0 or step == first:
                for name, value in report.items():
                    running[name] = 0.9 * running.get(name, float(value)) + 0.1 * float(value)
            losses = ", ".join(f"{name} {value:.4f}" for name, value in running.items())
            bar.update(task, advance=1, losses=losses)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(path, state)
                if not bar.console.is_terminal:  # a log
                    bar.console.print(f"{title}: step {step + 1} of {steps}, {losses}", markup=False)
                if on_save:
                    on_save(state)
    return state


def _bar() -> Progress:
    losses = TextColumn("{task.fields[losses]}", markup=False)
    counts = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(TextColumn("{task.description}", markup=False), *counts, losses, refresh_per_second=1)
