import dataclasses
import platform
import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdjax
from sdjax.engine import Bucket, Engine, Result, device_kind

BATCH = 2
# Everything that may be mixed in a batch or keep jobs from sharing one; two programs.
STEPS, SCALES = (1, 2, 5, 3), (7.5, 2.0, 0.5, 30.0)
PROMPTS = ("a red apple", "", "the cat and the dog on a castle", "an apple " * 60)
DETERMINISTIC = tuple(
    sdjax.Job(prompt=prompt, seed=seed, steps=steps, guidance_scale=scale, sampler="euler", noise_source="torch")
    for seed, (prompt, steps, scale) in enumerate(zip(PROMPTS, STEPS, SCALES, strict=True))
)
STOCHASTIC = tuple(
    dataclasses.replace(job, seed=2**64 - 1 - seed, sampler="euler_ancestral", noise_source="threefry", width=48)
    for seed, job in enumerate(DETERMINISTIC)
)
JOBS = DETERMINISTIC + STOCHASTIC


def make(engine: Engine, jobs: list[sdjax.Job] | tuple[sdjax.Job, ...]) -> list[Result]:
    """One result for each job, in their order."""
    tasks = [engine.prepare(job) for job in jobs]
    results = {result.metadata["id"]: result for result in engine.run(tasks)}
    return [results[task.id] for task in tasks]


def same(ours: list[Result], theirs: list[Result]) -> bool:
    """Whether pictures are the same to the last bit, and what is said of them too."""
    return all(
        one.metadata == other.metadata and np.array_equal(one.image, other.image)
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def compiled() -> list[Bucket]:
    """What `engine` has compiled so far."""
    return []


@pytest.fixture(scope="module")
def engine(sd1: sdjax.Model, compiled: list[Bucket]) -> Engine:
    return Engine(sd1, batch_size=BATCH, on_compile=compiled.append)


@pytest.fixture(scope="module")
def pictures(engine: Engine) -> list[Result]:
    """Of all jobs, on four devices."""
    return make(engine, JOBS)


def test_each_job_gives_its_picture(pictures: list[Result]):
    assert [result.image.shape for result in pictures] == [(32, 32, 3)] * 4 + [(32, 48, 3)] * 4
    assert all(result.image.dtype == np.uint8 and result.finite for result in pictures)
    assert len({result.image.tobytes() for result in pictures}) == len(JOBS)
    assert all(result.image.std() > 1 for result in pictures)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(JOBS))), st.integers(1, len(JOBS)))
def test_a_picture_depends_on_neither_order_nor_neighbours(engine, pictures, order, count):
    chosen = order[:count]
    assert same(make(engine, [JOBS[index] for index in chosen]), [pictures[index] for index in chosen])


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_a_picture_does_not_depend_on_how_many_jobs_are_handed_over_at_once(engine, pictures, at_once):
    for begin in range(0, len(JOBS), at_once):
        chosen = slice(begin, begin + at_once)
        assert same(make(engine, JOBS[chosen]), pictures[chosen])


@pytest.mark.parametrize("devices", [1, 2])
def test_a_picture_does_not_depend_on_the_number_of_devices(sd1, pictures, devices):
    fewer = Engine(sd1, batch_size=BATCH, devices=jax.local_devices()[:devices])
    assert fewer.images_per_batch == devices * BATCH
    assert same(make(fewer, JOBS), pictures)


def test_what_may_differ_within_a_batch_does_not_compile_again(engine, pictures, compiled):
    before = list(compiled)
    assert len(before) == len(set(before)) == 2
    changed = dataclasses.replace(
        DETERMINISTIC[0],
        prompt="a photo",
        negative_prompt="blue",
        seed=99,
        steps=32,
        guidance_scale=3.3,
        schedule="karras",
    )
    make(engine, [changed])
    assert compiled == before


def test_what_needs_another_program_is_another_bucket(engine):
    job = DETERMINISTIC[0]
    other = [
        {"steps": 33},
        {"guidance_scale": 1.0},
        {"sampler": "ddim"},
        {"noise_source": "threefry"},
        {"width": 64},
        {"height": 64},
    ]
    buckets = {engine.prepare(dataclasses.replace(job, **change)).bucket for change in other}
    assert len(buckets | {engine.prepare(job).bucket}) == len(other) + 1


def test_only_what_counts_is_computed(engine):
    def prompts(scale: float) -> tuple[str, ...]:
        job = sdjax.Job(prompt="a cat", negative_prompt="a dog", seed=0, guidance_scale=scale, sampler="euler")
        known = {engine.model.tokenizer(text): text for text in ("a cat", "a dog")}
        return tuple(known[tokens] for tokens in engine.prepare(job).prompts)

    assert prompts(7.5) == ("a cat", "a dog")
    assert prompts(1.0) == ("a cat",)
    assert prompts(0.0) == ("a dog",)


def test_without_guidance_the_network_sees_each_picture_once(sd1):
    """By the sizes in the program before it is compiled: a batch of one, not of two."""

    def batches(scale: float) -> set[str]:
        engine = Engine(sd1, batch_size=3, devices=jax.local_devices()[:1])
        task = engine.prepare(sdjax.Job(prompt="a cat", seed=0, guidance_scale=scale, sampler="euler"))
        text = jax.jit(engine._sharded(task.bucket)).lower(sd1.params, engine._inputs([task] * 3)).as_text()
        # Convolutions over 2x2 cells, the network's lowest level; those of the VAE see 8x8 at least.
        return set(re.findall(r"stablehlo\.convolution.*\(tensor<(\d+)x2x2x\d+xf32>, tensor", text))

    assert batches(7.5) == {"6"}
    assert batches(1.0) == batches(0.0) == {"3"}


def test_a_picture_that_is_not_finite_is_told_and_leaves_its_neighbours_alone(engine, pictures):
    # Only the word "castle", which one of the four jobs has, is broken.
    ids = [task.prompts[0].ids for task in map(engine.prepare, DETERMINISTIC)]
    [word] = set(ids[2]) - set(ids[0]) - set(ids[1]) - set(engine.model.tokenizer("the cat and the dog on a").ids)

    def spoil(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        return leaf.at[word].set(np.nan) if "token_embedding" in jax.tree_util.keystr(path) else leaf

    whole = engine._params
    engine._params = jax.tree.map_with_path(spoil, whole)
    try:
        found = make(engine, DETERMINISTIC)
    finally:
        engine._params = whole
    assert [result.finite for result in found] == [True, True, False, True]
    assert same(found[:2] + found[3:], pictures[:2] + pictures[3:4])


def test_metadata_say_what_was_done_with_all_defaults_filled_in(engine, pictures):
    metadata = pictures[0].metadata
    resolved = engine.model.resolve(DETERMINISTIC[0])
    assert {name: metadata[name] for name in dataclasses.asdict(resolved)} == dataclasses.asdict(resolved)
    assert (metadata["width"], metadata["height"], metadata["sampler"]) == (32, 32, "euler")
    assert metadata["model_digest"] == engine.model.digest and metadata["batch_size"] == BATCH
    assert metadata["prompt_cut"] == "" != pictures[3].metadata["prompt_cut"]
    assert pictures[3].metadata["prompt_tokens"] == 120
    steps = engine.model.steps(resolved)
    assert (metadata["steps_taken"], metadata["timestep_spacing"]) == (len(steps.timesteps), steps.spacing)
    trailing = engine.prepare(dataclasses.replace(DETERMINISTIC[0], schedule="trailing", steps=61)).metadata
    assert (trailing["steps"], trailing["steps_taken"], trailing["timestep_spacing"]) == (61, 62, "trailing")


def test_a_default_and_the_same_value_said_are_one_job(engine):
    said = dataclasses.replace(DETERMINISTIC[0], width=32, height=32, schedule="leading")
    left = engine.prepare(DETERMINISTIC[0])
    assert left.id == engine.prepare(dataclasses.replace(said, schedule=left.job.schedule)).id
    assert left.id != engine.prepare(dataclasses.replace(said, schedule="karras")).id


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 30}, "width = 30: expected a multiple of 4, the VAE's factor; 32 is near"),
        ({"height": 1}, "height = 1: expected a multiple of 4, the VAE's factor; 4 is near"),
        ({"seed": None}, "the job has no seed"),
        ({"width": 4, "height": 4, "noise_source": "torch"}, "4x4 pixels take 4 numbers of noise, and torch draws"),
        ({"sampler": None}, "PNDMScheduler, is not among the samplers; set sampler to one of ddim, euler"),
    ],
)
def test_what_a_model_can_not_do_is_an_error_that_says_what_it_can(engine, change, message):
    with pytest.raises(sdjax.JobError, match=re.escape(message)):
        engine.prepare(dataclasses.replace(DETERMINISTIC[0], **change))


def test_a_batch_of_none_is_an_error(sd1):
    with pytest.raises(ValueError, match="batch_size = 0: expected at least 1"):
        Engine(sd1, batch_size=0)


def test_devices_of_none_are_an_error(sd1):
    with pytest.raises(ValueError, match="expected one or more, of one kind"):
        Engine(sd1, devices=[])


def test_the_instruction_set_of_a_cpu_is_part_of_the_id(engine, monkeypatch):
    kind = device_kind(jax.devices()[0])
    assert engine.fingerprint["device_kind"] == kind and kind.startswith(f"cpu {platform.machine()}")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    assert device_kind(jax.devices()[0]) == f"{kind} SSE4_2"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_nearly_the_same(sd1_folder, pictures, dtype):
    model = sdjax.load(sd1_folder, dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):  # Flax' own norms promote
        [found] = make(Engine(model, batch_size=BATCH, devices=jax.devices()[:1]), DETERMINISTIC[:1])
    assert found.finite and found.metadata["dtype"] == dtype
    distance = np.abs(found.image.astype(int) - pictures[0].image.astype(int)).mean()
    assert 0 < distance < 8


def test_jobs_are_taken_only_as_far_as_they_can_be_worked_on(engine, pictures):
    taken = []

    def jobs() -> Iterator[sdjax.engine.Task]:
        for index in range(1000):
            taken.append(index)
            yield engine.prepare(dataclasses.replace(DETERMINISTIC[0], seed=index))

    next(engine.run(jobs()))
    assert len(taken) == 2 * engine.images_per_batch
