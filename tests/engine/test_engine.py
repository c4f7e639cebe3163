import dataclasses
import platform
import re
import threading
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdjax
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.engine import batches
from sdjax.engine.device import device_kind
from sdjax.engine.engine import Engine, Result
from sdjax.engine.inputs import SHARDING
from sdjax.engine.passes import Bucket, Task
from sdjax.jobs.records import job_of, to_metadata
from tests.results import make, same, taken_for_the_first

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


@pytest.fixture(scope="module")
def compiled() -> list[Bucket]:
    """What `engine` has compiled so far."""
    return []


@pytest.fixture(scope="module")
def engine(tiny: sdjax.Model, compiled: list[Bucket]) -> Engine:
    return Engine(tiny, batch_size=BATCH, on_compile=compiled.append)


@pytest.fixture(scope="module")
def images(engine: Engine) -> list[Result]:
    """Of all jobs, on four devices."""
    return make(engine, JOBS)


def test_each_job_gives_its_image(images: list[Result]):
    assert [result.image.shape for result in images] == [(16, 16, 3)] * 4 + [(16, 48, 3)] * 4
    assert all(result.image.dtype == np.uint8 and result.finite for result in images)
    assert len({result.image.tobytes() for result in images}) == len(JOBS)
    assert all(result.image.std() > 1 for result in images)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(JOBS))), st.integers(1, len(JOBS)))
def test_an_image_depends_on_neither_order_nor_neighbours(engine, images, order, count):
    chosen = order[:count]
    assert same(make(engine, [JOBS[index] for index in chosen]), [images[index] for index in chosen])


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_an_image_does_not_depend_on_how_many_jobs_are_handed_over_at_once(engine, images, at_once):
    for begin in range(0, len(JOBS), at_once):
        chosen = slice(begin, begin + at_once)
        assert same(make(engine, JOBS[chosen]), images[chosen])


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_number_of_devices(tiny, images):
    fewer = Engine(tiny, batch_size=BATCH, devices=jax.local_devices()[:2])  # of one device: below, each sampler's
    assert fewer.images_per_batch == 2 * BATCH
    assert same(make(fewer, JOBS), images)


# Of each sampler a job on the device's noise and one on torch's, of different lengths, prompts and options.
OF_EACH_SAMPLER = tuple(
    sdjax.Job(
        prompt=PROMPTS[index % 3],
        seed=index,
        steps=4 + index % 5,
        guidance_scale=1.5 + index,
        sampler=name,
        noise_source=source,
        variation_seed=7,
        variation_strength=(index % 3) / 4,
        s_churn=5.0 if row.churns else 0.0,
        width=48,
    )
    for source in ("threefry", "torch")
    for index, (name, row) in enumerate(SAMPLERS.items())
)


def test_images_of_each_sampler_depend_on_neither_order_nor_neighbours_nor_devices(tiny, engine):
    images = make(engine, OF_EACH_SAMPLER)
    assert all(result.finite for result in images)
    assert same(make(engine, OF_EACH_SAMPLER[::-1]), images[::-1])
    assert same(make(engine, OF_EACH_SAMPLER[::3]), images[::3])
    fewer = Engine(tiny, batch_size=BATCH, devices=jax.local_devices()[:1])
    assert same(make(fewer, OF_EACH_SAMPLER), images)


def arguments_of(engine: Engine, task: Task) -> tuple[Any, Any]:
    """What the sampling program of a batch of one job is given: parameters and inputs."""
    execution, batch = engine._execution, [task.first] * engine.images_per_batch
    computed = execution._computed(batch, execution.params, None, ())
    inputs = batches.inputs(batch, engine.model.params, computed)
    return execution.params, execution.devices.put(inputs, SHARDING)


def program_of(engine: Engine, task: Task) -> Any:
    """The compiled sampling program of a job."""
    execution = engine._execution
    return execution.devices.compiled(execution.sample_program(task.first), *arguments_of(engine, task))


def test_the_program_of_one_device_does_the_same_operations_as_that_of_four(tiny):
    """XLA may write a formula in another way in another program, and images then differ in their last bits."""

    def operations(devices: int, **changes: object) -> dict[str, int]:
        classifier = sdjax.Classifier(lambda x, t, labels, p: -((x - 0.3) ** 2).sum((1, 2, 3)), (), ("a",), "")
        engine = Engine(tiny, batch_size=2, devices=jax.local_devices()[:devices], classifier=classifier)
        job = sdjax.Job(prompt="a", seed=1, sampler="euler", noise_source="torch", **changes)
        task = engine.prepare(job)
        text = program_of(engine, task).as_text()
        counted = Counter(re.findall(r"= \S+ ([a-z\-]+)\(", text))
        return {name: counted[name] for name in ("add", "multiply", "divide", "sqrt", "rsqrt", "exponential", "reduce")}

    for changes in ({}, {"classifier_scale": 2.0, "classifier_label": 0}):
        assert operations(1, **changes) == operations(4, **changes)


def test_what_may_differ_within_a_batch_does_not_compile_again(engine, images, compiled):
    before = list(compiled)
    assert len(before) == len(set(before))
    changed = dataclasses.replace(
        DETERMINISTIC[0],
        prompt="a photo",
        negative_prompt="blue",
        seed=99,
        steps=32,
        guidance_scale=3.3,
        guidance_rescale=0.5,
        schedule="karras",
        emphasis="no_norm",
        variation_seed=5,
        variation_strength=0.3,
        dynamic_thresholding_ratio=0.9,
    )
    prompts = [dataclasses.replace(changed, prompt=prompt) for prompt in ("a (red:1.3) photo", "[a cat] (dog)")]
    make(engine, [changed, *prompts])
    samplers = [dataclasses.replace(changed, sampler=name, schedule=None, noise_source="threefry") for name in SAMPLERS]
    make(engine, [dataclasses.replace(job, steps=20, width=48) for job in samplers])
    assert compiled == before


def test_layers_that_are_left_out_make_no_other_program(sd1):
    engine = Engine(sd1)
    assert (
        len({engine.prepare(dataclasses.replace(DETERMINISTIC[0], clip_skip=skip)).first.bucket for skip in (0, 1)})
        == 1
    )


def test_what_needs_another_program_is_another_bucket(engine):
    job = dataclasses.replace(DETERMINISTIC[0], steps=4)
    other = [
        {"steps": 65},
        {"guidance_scale": 1.0},
        {"guidance_end": 0.5},
        {"noise_source": "threefry"},
        {"width": 64},
        {"height": 64},
        {"prompt": "a AND b"},
        {"prompt": "[a|b]"},
        {"prompt": "a BREAK b"},
        {"preview_every": 1},
    ]
    buckets = {engine.prepare(dataclasses.replace(job, **change)).first.bucket for change in other}
    assert len(buckets | {engine.prepare(job).first.bucket}) == len(other) + 1


def test_only_what_counts_is_computed(engine):
    def branches(scale: float, prompt: str = "a cat") -> tuple[int, int, bool]:
        job = sdjax.Job(prompt=prompt, negative_prompt="a dog", seed=0, guidance_scale=scale, sampler="euler")
        used = engine.prepare(job).first.prompts
        return used.shape.branches, len(used.readings), used.shape.guided

    assert branches(7.5) == (2, 2, True)
    assert branches(1.0) == branches(0.0) == (1, 1, False)
    assert branches(7.5, "a cat AND a mouse") == branches(1.0, "a cat AND a mouse") == (3, 3, True)


def test_without_guidance_the_network_sees_each_image_once(sd1):
    """By the sizes in the program before it is compiled: a batch of one, not of two."""

    def batches(scale: float) -> set[str]:
        engine = Engine(sd1, batch_size=3, devices=jax.local_devices()[:1])
        task = engine.prepare(sdjax.Job(prompt="a cat", seed=0, guidance_scale=scale, sampler="euler"))
        program = engine._execution.sample_program(task.first).function
        text = jax.jit(program).lower(*arguments_of(engine, task)).as_text()
        # Convolutions over 2x2 cells, the network's lowest level; those of the VAE see 8x8 at least.
        return set(re.findall(r"stablehlo\.convolution.*\(tensor<(\d+)x2x2x\d+xf32>, tensor", text))

    assert batches(7.5) == {"6"}
    assert batches(1.0) == batches(0.0) == {"3"}


def test_an_image_that_is_not_finite_is_told_and_leaves_its_neighbours_alone(engine, images):
    # Only the word "castle", which one of the four jobs has, is broken.
    tasks = [engine.prepare(job).first.prompts for job in DETERMINISTIC]
    ids = [task.prompt.readings[task.readings[0]].ids[0] for task in tasks]
    [word] = set(ids[2]) - set(ids[0]) - set(ids[1]) - set(engine.model.tokenizer("the cat and the dog on a").ids)

    def spoil(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        return leaf.at[word].set(np.nan) if "token_embedding" in jax.tree_util.keystr(path) else leaf

    whole = engine._execution.params
    engine._execution.params = jax.tree.map_with_path(spoil, whole)
    try:
        found = make(engine, DETERMINISTIC)
    finally:
        engine._execution.params = whole
    assert [result.finite for result in found] == [True, True, False, True]
    assert same(found[:2] + found[3:], images[:2] + images[3:4])


def test_metadata_say_what_was_done_with_all_defaults_filled_in(engine, images):
    metadata = images[0].metadata
    resolved = engine.model.resolve(DETERMINISTIC[0])
    assert job_of(metadata) == resolved and metadata.items() >= to_metadata(resolved).items()
    assert (metadata["width"], metadata["height"], metadata["sampler"]) == (16, 16, "euler")
    assert metadata["model_digest"] == engine.model.digest and metadata["batch_size"] == BATCH
    assert (images[3].metadata["prompt_tokens"], images[3].metadata["prompt_chunks"]) == (120, 2)
    plain = engine.prepare(dataclasses.replace(DETERMINISTIC[3], prompt_syntax="plain")).metadata
    assert (plain["prompt_tokens"], plain["prompt_chunks"]) == (120, 1)
    assert images[3].metadata["prompt_cut"] == "" != plain["prompt_cut"]
    assert (metadata["steps_taken"], metadata["timestep_spacing"]) == (1, "linspace")
    trailing = engine.prepare(dataclasses.replace(DETERMINISTIC[0], timestep_spacing="trailing", steps=61)).metadata
    assert (trailing["steps"], trailing["steps_taken"], trailing["timestep_spacing"]) == (61, 62, "trailing")
    heun = engine.prepare(dataclasses.replace(DETERMINISTIC[0], sampler="heun", steps=10)).metadata
    assert (heun["steps_taken"], heun["evaluations"]) == (10, 19)


def test_a_default_and_the_same_value_said_are_one_job(engine):
    said = dataclasses.replace(
        DETERMINISTIC[0], width=16, height=16, schedule="Uniform", sampler="EulerDiscreteScheduler"
    )
    left = engine.prepare(DETERMINISTIC[0])
    assert left.id == engine.prepare(dataclasses.replace(said, timestep_spacing=left.job.timestep_spacing)).id
    assert left.id != engine.prepare(dataclasses.replace(said, schedule="karras")).id


@pytest.mark.parametrize(
    "change, message",
    [
        ({"width": 31}, "width = 31: expected a multiple of 2, the VAE's factor; 32 is near"),
        ({"height": 1}, "height = 1: expected a multiple of 2, the VAE's factor; 2 is near"),
        ({"seed": None}, "the job has no seed"),
        ({"sampler": None, "steps": 2}, "steps = 2: pndm takes 4 at least"),
        ({"eta": 0.5}, "eta = 0.5: euler has none; leave it out, or take one of ddim"),
        ({"sampler": "ddim", "s_churn": 1.0}, "s_churn = 1.0: ddim has none; leave it out, or take one of euler"),
        ({"sampler": "uni_pc", "solver_order": 4}, "solver_order = 4: uni_pc has 1, 2, 3"),
        ({"schedule": "simple", "timestep_spacing": "leading"}, "schedule = simple is not one of those that diffusers"),
        ({"clip_skip": 3}, "clip_skip = 3: the text encoder has"),
        ({"seed_resize_from_width": 31, "seed_resize_from_height": 32}, "seed_resize_from_width = 31: expected"),
        ({"prompt": "a (red apple"}, "prompt, letter 3: "),
        ({"prompt": "[a:b:9]", "steps": 5}, "prompt, letter "),
        ({"guidance_start": 0.9, "guidance_end": 0.95}, "of 1 steps none is within"),
        ({"classifier_scale": 1.0, "classifier_label": 3}, "there is no classifier"),
    ],
)
def test_what_a_model_can_not_do_is_an_error_that_says_what_it_can(engine, change, message):
    with pytest.raises(sdjax.JobError, match=re.escape(message)):
        engine.prepare(dataclasses.replace(DETERMINISTIC[0], **change))


def test_a_batch_of_none_is_an_error(tiny):
    with pytest.raises(ValueError, match="batch_size = 0: expected at least 1"):
        Engine(tiny, batch_size=0)


def test_devices_of_none_are_an_error(tiny):
    with pytest.raises(ValueError, match="expected one or more, of one kind"):
        Engine(tiny, devices=[])


def test_the_instruction_set_of_a_cpu_is_part_of_the_id(engine):
    kind = device_kind(jax.devices()[0])
    assert engine.fingerprint["device_kind"] == kind and kind.startswith(f"cpu {platform.machine()}")


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_draws_nearly_the_same(tiny_folder, images, dtype):
    model = sdjax.load(tiny_folder, dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):  # Flax' own norms promote
        [found] = make(Engine(model, batch_size=BATCH, devices=jax.devices()[:1]), DETERMINISTIC[:1])
    assert found.finite and found.metadata["dtype"] == dtype
    distance = np.abs(found.image.astype(int) - images[0].image.astype(int)).mean()
    assert 0 < distance < 8


def test_jobs_are_taken_only_as_far_as_they_can_be_worked_on(engine, images):
    many = (dataclasses.replace(DETERMINISTIC[0], seed=seed) for seed in range(1000))
    # Two batches are on the devices, two are formed, and one is, for which there is room as the first is taken.
    assert taken_for_the_first(engine, many) == 5 * engine.images_per_batch


def test_the_program_of_another_size_is_compiled_while_batches_before_it_run(tiny):
    other = threading.Event()
    one = jax.local_devices()[:1]
    engine = Engine(tiny, batch_size=1, devices=one, on_compile=lambda bucket: bucket.width == 32 and other.set())
    jobs = [sdjax.Job(prompt="a cat", seed=seed, steps=2, sampler="euler", width=16, height=16) for seed in range(4)]
    jobs.append(dataclasses.replace(jobs[0], width=32))
    results = engine.run(map(engine.prepare, jobs))
    first = next(results)
    assert other.wait(120), "this thread asks for no program while it waits"
    found = [first, *results]
    assert [(result.metadata["seed"], result.metadata["width"]) for result in found] == [
        *((seed, 16) for seed in range(4)),
        (0, 32),
    ]
    [alone] = Engine(tiny, batch_size=1, devices=one).run([engine.prepare(jobs[-1])])
    assert np.array_equal(alone.image, found[-1].image)


def test_an_iterator_of_results_that_is_closed_leaves_no_thread(tiny):
    engine = Engine(tiny, batch_size=1)
    before = threading.active_count()
    results = engine.run(engine.prepare(each) for each in JOBS)
    next(results)
    results.close()
    assert threading.active_count() <= before
