"""Images as conditions: what they do to an image, and that neighbours change no bit of it."""

import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

import sdjax
from sdjax.checkpoints.upscaler_file import read_upscaler
from sdjax.engine.execution import Execution
from sdjax.engine.passes import Bucket
from sdjax.images.cached import CachedImage
from sdjax.jobs.canonical import PIXEL_UPSCALERS
from sdjax.jobs.input_images import InputFiles, fit_inputs, read_file
from sdjax.models.t2i_adapter import T2IAdapterConfig
from tests import toys
from tests.checkpoints.test_depth_file import write_folder as write_depth
from tests.golden import conditioned, controlnet, sd_upscalers
from tests.golden import upscalers as upscaler_cases
from tests.results import make, same

BATCH = 2
SIDE = 32


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> sdjax.Library:
    return sdjax.Library(controlnets=conditioned.write_controls(tmp_path_factory.mktemp("controls")))


def engine_of(model: sdjax.Model, library: sdjax.Library, devices: int = 4, **options: object) -> sdjax.Engine:
    given = {"read_image": conditioned.FILES.__getitem__, **options}
    return sdjax.Engine(model, batch_size=BATCH, devices=jax.local_devices()[:devices], library=library, **given)


def job(number: int, **fields: object) -> sdjax.Job:
    given = {"width": SIDE, "height": SIDE, "sampler": "euler", "steps": 3 + number % 2, **fields}
    return sdjax.Job(prompt="a red apple", seed=number, guidance_scale=2.0 + number % 3, **given)


from_cat = {"image": "cat.png"}
in_mask = {**from_cat, "mask_image": "mask.png"}
JOBS = [
    job(0),
    job(1, **from_cat, strength=0.7),
    job(2, **from_cat, strength=0.4, noise_source="torch"),
    job(3, image="pose.png", strength=1.0),
    job(4, **in_mask, strength=0.8),
    job(5, **in_mask, inpaint_fill="noise", mask_blur=2.0),
    job(6, **in_mask, inpaint_fill="average", strength=0.9, noise_source="torch", sampler="euler_ancestral"),
    job(7, **in_mask, only_masked=True, only_masked_padding=4, strength=0.6),
    job(8, **from_cat, strength=0.0),
    job(9, controlnets="tiny:0.7", control_image="edges.png"),
    job(10, controlnets="tiny:1:0.5", control_image="pose.png", control_preprocessor="canny", guess_mode=True),
    job(11, hires_scale=2.0, hires_strength=0.6),
    job(12, hires_scale=2.0, hires_strength=0.4, sampler="euler_ancestral"),
    job(13, hires_scale=2.0, hires_upscaler="lanczos", hires_strength=0.5),
    job(14, **from_cat, strength=0.5, upscaler="bicubic", upscale_by=1.5),
]


@pytest.fixture(scope="module")
def compiled() -> list[Bucket]:
    return []


@pytest.fixture(scope="module")
def engine(tiny, library, compiled) -> sdjax.Engine:
    """On one device: most of these jobs have a program of their own, and there is less to pad."""
    return engine_of(tiny, library, devices=1, on_compile=compiled.append)


@pytest.fixture(scope="module")
def results(engine) -> list[sdjax.Result]:
    return make(engine, JOBS)


def test_images_depend_on_neither_order_nor_neighbours_nor_devices(tiny, library, engine, results):
    assert all(result.finite for result in results)
    assert same(make(engine, JOBS[::-1]), results[::-1])
    assert same(make(engine, JOBS[1::3]), results[1::3])
    four = engine_of(tiny, library, devices=4)
    for index in (5, 10):  # all of them in the next
        assert same(make(four, [JOBS[index]]), [results[index]])


@pytest.mark.slow
def test_no_image_depends_on_the_number_of_devices(tiny, library, results):
    assert same(make(engine_of(tiny, library, devices=4), JOBS), results)


# With random weights: a UNet that sees depth, an estimator of it, a T2I adapter, an upscaler; and one that sees masks.
SMALL = upscaler_cases.CASES["rrdb_x4"].config
OTHER_JOBS = {
    "tiny_depth": [
        job(0, **from_cat, strength=0.6),
        job(1, image="pose.png", depth_image="depth.png", noise_source="torch"),
        job(2, controlnets="adapter:0.7", control_image="edges.png"),
        job(3, controlnets="pooled", control_image="cat.png", control_preprocessor="depth"),
        job(4, **from_cat, strength=0.5, upscaler="small"),
        job(5, hires_scale=1.5, hires_upscaler="small"),
    ],
    "tiny_inpaint": [
        job(0, **in_mask, strength=0.7),
        job(1, **in_mask, mask_blur=2.0, keep_unmasked=True, noise_source="torch"),
        job(2, **in_mask, invert_mask=True, controlnets="tiny", control_image="pose.png"),
        job(3, **from_cat, strength=0.6),
        job(4, **in_mask, only_masked=True, only_masked_padding=4),
    ],
}


def engine_of_others(name: str, folder: Path, devices: int) -> sdjax.Engine:
    model = sdjax.load(toys.write_toy(folder / name, conditioned.MODELS[name].toy))
    controls = conditioned.write_controls(folder / "controls")
    (controls / "adapter").mkdir(exist_ok=True)
    adapter = T2IAdapterConfig(channels=model.unet.config.block_out_channels, downscale_factor=2)
    controlnet.write_folder(controls / "adapter", controlnet.Control(adapter, 21, ()))
    save_file(upscaler_cases.state(SMALL), folder / "small.safetensors")
    found = sdjax.Library(controlnets=controls, depth_model=write_depth(folder / "depth"), upscalers=folder)
    return engine_of(model, found, devices)


@pytest.mark.parametrize("name", OTHER_JOBS)
def test_images_of_models_that_see_more_depend_on_neither_order_nor_neighbours(tmp_path, name):
    jobs, engine = OTHER_JOBS[name], engine_of_others(name, tmp_path, 1)
    results = make(engine, jobs)
    assert all(result.finite for result in results)
    assert len({result.image.tobytes() for result in results}) == len(jobs)
    assert same(make(engine, jobs[::-1]), results[::-1])
    for index, each in enumerate(jobs):
        assert same(make(engine, [each]), results[index : index + 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_JOBS)
def test_no_image_of_models_that_see_more_depends_on_the_number_of_devices(tmp_path, name):
    alone, together = (engine_of_others(name, tmp_path, devices) for devices in (1, 4))
    assert same(make(alone, OTHER_JOBS[name]), make(together, OTHER_JOBS[name]))


def test_programs_are_compiled_once_for_a_bucket_whatever_the_strength_and_the_filling(engine, results, compiled):
    assert len(compiled) == len(set(compiled))
    before = len(compiled)
    make(engine, [job(20, **from_cat, strength=0.2), job(21, **in_mask, strength=0.3, inpaint_fill="blank")])
    assert len(compiled) == before


@pytest.mark.parametrize("noise_source", ["threefry", "torch"])
def test_of_strength_1_nothing_of_the_image_is_left(engine, noise_source):
    plain = engine.prepare(job(30, noise_source=noise_source))
    whole = engine.prepare(job(30, **from_cat, strength=1.0, noise_source=noise_source))
    assert plain.id == whole.id and whole.metadata["input_image"] is None  # metadata tell what was done
    # Here it is shown to a ControlNet, and so it stays in the job.
    controlled = job(31, controlnets="tiny", control_image="cat.png", noise_source=noise_source)
    begun = dataclasses.replace(controlled, **from_cat, control_image=None, strength=1.0)
    ids = {make(engine, [each])[0].metadata["id"]: make(engine, [each])[0].image for each in (controlled, begun)}
    assert len(ids) == 2 and np.array_equal(*ids.values())


def test_of_strength_0_the_image_comes_back_but_for_what_the_vae_loses():
    emoji, file = sdjax.load("emoji"), Path(__file__).parents[1] / "golden" / "apple.png"
    given = np.asarray(PIL.Image.open(file).convert("RGB"))
    [result] = sdjax.generate(
        emoji, [sdjax.Job(prompt="a red apple", seed=1, steps=4, image=str(file), strength=0.0)], batch_size=1
    )

    @jax.jit
    def there_and_back(pixels: jax.Array) -> jax.Array:
        vae = {"params": emoji.params["vae"]}
        return emoji.vae.apply(vae, emoji.vae.apply(vae, pixels, method="encode").mean, method="decode")

    again = np.asarray(there_and_back(given[None] / np.float32(127.5) - 1))[0] * 127.5 + 127.5

    def loss(image: np.ndarray) -> float:
        return float(np.abs(np.clip(image, 0, 255) - given).mean())

    assert result.image.shape == given.shape and loss(result.image.astype(float)) < 1.1 * loss(again) < 10


def test_outside_of_the_mask_pixels_stay_exactly_where_that_is_asked_for(engine):
    original, outside = conditioned.image("cat"), conditioned.mask() == 0
    inside = ~outside
    loose, kept, inverted = (
        result.image
        for result in make(
            engine,
            [job(40, **in_mask), job(40, **in_mask, keep_unmasked=True),
             job(40, **in_mask, keep_unmasked=True, invert_mask=True)],
        )
    )  # fmt: skip
    assert not np.array_equal(loose[outside], original[outside])
    assert np.array_equal(kept[outside], original[outside]) and np.array_equal(kept[inside], loose[inside])
    assert np.array_equal(inverted[inside], original[inside]) and not np.array_equal(
        inverted[outside], original[outside]
    )


def test_only_the_masked_part_is_drawn_and_put_back_into_the_whole_image(tiny, library):
    whole = np.repeat(np.repeat(conditioned.image("cat"), 3, axis=0), 2, axis=1)
    mask = np.zeros(whole.shape[:2], np.uint8)
    mask[50:70, 20:30] = 255
    files = {"whole": conditioned.png(whole), "mask": conditioned.png(mask)}
    engine = engine_of(tiny, library, devices=1, read_image=files.__getitem__)
    [result] = make(engine, [job(50, image="whole", mask_image="mask", only_masked=True, only_masked_padding=2)])
    assert result.image.shape == whole.shape == (96, 64, 3)
    assert (result.metadata["width"], result.metadata["image_width"]) == (SIDE, 64)
    assert np.array_equal(result.image[mask == 0], whole[mask == 0])
    assert np.abs(result.image[mask > 0].astype(int) - whole[mask > 0]).mean() > 1


def test_an_image_gives_an_image_its_size_where_the_job_says_none(engine, tiny, library):
    files = {"wide": conditioned.png(np.zeros((39, 61, 3), np.uint8))}
    small = engine_of(tiny, library, devices=1, read_image=files.__getitem__)
    task = small.prepare(sdjax.Job(prompt="a", seed=1, image="wide"))
    assert (task.job.height, task.job.width, task.job.strength) == (38, 60, 0.8)
    task = small.prepare(sdjax.Job(prompt="a", seed=1, image="wide", height=64, width=32, resize_mode="crop"))
    assert (task.first.bucket.height, task.first.bucket.width) == (64, 32)


def test_what_is_in_an_image_is_in_the_id_and_where_it_lies_is_not(tiny, library):
    files = {name: conditioned.FILES["cat.png"] for name in ("a.png", "b.png")} | {
        "c.png": conditioned.FILES["pose.png"]
    }
    engine = engine_of(tiny, library, devices=1, read_image=files.__getitem__)
    ids = [engine.prepare(job(1, image=name)).id for name in files]
    assert ids[0] == ids[1] != ids[2]
    told = engine.prepare(job(1, image="a.png")).metadata
    assert told["input_image"] == "a.png" and len(json.loads(told["pictures"])["sha256"]["image"][0]) == 64


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"strength": 0.5}, "strength = 0.5: expected image with it"),
        ({"mask_image": "mask.png"}, "mask_image = 'mask.png': expected image with it"),
        ({**from_cat, "mask_blur": 2.0}, "mask_blur = 2.0: expected mask_image with it"),
        ({"controlnets": "tiny"}, "controlnets = 'tiny': expected control_image or image with it"),
        ({**from_cat, "controlnets": "tiny:2:0.5:0.2"}, "it starts at 0.5 and ends at 0.2"),
        ({**from_cat, "controlnets": "tinny"}, "did you mean 'tiny'?"),
        ({**from_cat, "controlnets": "tiny", "control_preprocessor": "cany"}, "did you mean 'canny'?"),
        ({**from_cat, "controlnets": "tiny", "control_preprocessor": "depth"}, "depth_model"),
        ({**from_cat, "depth_image": "depth.png"}, "this model takes no depth map"),
        ({**in_mask, "hires_scale": 2.0}, "not with a mask_image"),
        ({"upscaler": "esrgan"}, "set library.upscalers"),
        ({"hires_scale": 2.0, "hires_upscaler": "laten"}, "laten"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_an_error_that_says_why(engine, fields, expected):
    with pytest.raises(sdjax.JobError) as raised:
        engine.prepare(job(1, **fields))
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    "make_file, expected",
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(conditioned.FILES["cat.png"][:-40]), "truncated"),
    ],
    ids=["missing", "folder", "empty", "truncated"],
)  # fmt: skip
def test_a_file_that_is_no_image_is_an_error_that_names_it(tiny, tmp_path, make_file, expected):
    path = tmp_path / "input.png"
    make_file(path)
    engine = engine_of(tiny, sdjax.Library(), devices=1, read_image=read_file)
    with pytest.raises(sdjax.JobError) as raised:
        engine.prepare(job(1, image=str(path)))
    assert str(raised.value).startswith("image: ") and "input.png" in str(raised.value)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    "path, words",
    [
        *((path, "is not supported here") for path in ("https://example.org/a.png", "file:///etc/passwd", "ftp:x")),
        ("data:image/png;base64,AAAA", "base64 of an image is not supported"),
    ],
)
def test_images_are_read_from_this_machine_alone(path, words):
    with pytest.raises(sdjax.JobError, match=words):
        read_file(path)


def test_a_device_is_no_image():
    with pytest.raises(sdjax.JobError, match="is a device"):
        read_file("/dev/zero")


def test_of_depth_maps_and_control_images_the_part_around_the_mask_is_shown():
    rows, columns = np.meshgrid(np.arange(64), np.arange(96), indexing="ij")
    whole = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    mask = np.zeros((64, 96), np.float32)
    mask[20:36, 40:56] = 1
    image = CachedImage(whole, ("image",))
    # Of half the size, which shows the same.
    depth = columns[::2, ::2].astype(np.float32)
    mask_file, depth_file = CachedImage(mask, ("mask",)), CachedImage(depth, ("depth",))
    files = InputFiles(image, mask_file, depth_file, (image,), {}, ())
    asked = job(1, **in_mask, width=16, height=16, only_masked=True, only_masked_padding=0, controlnets="tiny")
    images = fit_inputs(asked, files, 8, wants_depth=True)
    assert images.region == (20, 40, 36, 56)
    assert np.array_equal(images.image, whole[20:36, 40:56]) and np.array_equal(images.controls[0], images.image)
    assert np.array_equal(images.depth, depth[10:18, 20:28])


def test_a_job_as_it_was_planned_is_the_same_job(engine):
    more = [
        job(1, **from_cat, strength=1.0),
        job(2, **from_cat, strength=1.0, hires_scale=2.0),
        job(3, **in_mask, strength=1),
    ]
    for each in (*JOBS, *more):
        task = engine.prepare(each)
        again = engine.prepare(task.job)
        assert (again.id, again.metadata) == (task.id, task.metadata)


def test_of_strength_0_guidance_and_controls_have_no_say(engine):
    task = engine.prepare(job(1, **from_cat, strength=0.1, guidance_end=0.5, controlnets="tiny:1:0:0.1"))
    assert (task.metadata["steps_taken"], task.metadata["evaluations"]) == (0, 0)
    with pytest.raises(sdjax.JobError, match="tiny acts in none of 4 steps"):
        engine.prepare(job(1, **from_cat, strength=1.0, controlnets="tiny:1:0.1:0.2"))


@pytest.mark.parametrize(
    "error, told",
    [
        (MemoryError("Unable to allocate 1 TiB"), "out of memory at "),
        (sdjax.JobError("upscaler = 'x': x.pth is gone"), "x.pth is gone"),
    ],
)
def test_what_can_not_be_finished_costs_its_own_batch_alone(engine, monkeypatch, error, told):
    def narrow(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(Execution, "_upscale", narrow)
    large, plain = make(engine, [job(1, upscaler="lanczos", upscale_by=4), job(0)])
    assert isinstance(large.problem, type(error)) and told in str(large.problem) and not large.finite
    assert plain.problem is None and plain.finite


def test_an_image_has_no_size_that_nobody_asked_for(engine, tiny, library):
    def asked(rows: int, columns: int, **fields: object) -> sdjax.Job:
        written = io.BytesIO()
        PIL.Image.new("L", (columns, rows), 120).save(written, "PNG")
        small = engine_of(tiny, library, devices=1, read_image={"big.png": written.getvalue()}.__getitem__)
        return small.prepare(sdjax.Job(prompt="a", seed=1, image="big.png", **fields)).job

    with pytest.raises(sdjax.JobError, match=r"image: big.png has 3000x2000 pixels, and the row does not say"):
        asked(2000, 3000)
    assert (asked(20, 60, height=32).width, asked(64, 96).width) == (96, 96)
    for fields in ({"hires_scale": 8.0}, {"upscaler": "lanczos", "upscale_by": 8}):
        with pytest.raises(sdjax.JobError, match="16384x16384 pixels; expected up to 8192"):
            engine.prepare(sdjax.Job(prompt="a", seed=1, width=2048, height=2048, **fields))


def test_an_upscaler_that_gives_no_numbers_costs_its_own_images_alone(tiny, library, tmp_path):
    broken = {name: leaf * np.nan for name, leaf in upscaler_cases.state(SMALL).items()}
    save_file(broken, tmp_path / "broken.safetensors")
    engine = engine_of(tiny, library._replace(upscalers=tmp_path), devices=1)
    size = {"height": 16, "width": 16}
    results = make(engine, [job(80, upscaler="broken", **size), job(81, upscaler="lanczos", upscale_by=4.0, **size)])
    assert [result.finite for result in results] == [False, True]
    assert {result.image.shape for result in results} == {(64, 64, 3)}


# What of the key of an upscaler's program says how many images it takes at once.
IMAGES_AT_ONCE = {
    "x4": ("noise images", lambda key: key[1][0][0][0]),
    "x2": ("double", lambda key: key[1][0]),
    "small": ("enlarge", lambda key: key[2][0]),
}


def test_upscalers_of_all_kinds_use_all_devices_and_give_the_same_bits(tiny, library, tmp_path):
    sd_upscalers.write(tmp_path / "x4", sd_upscalers.X4_TOY)
    sd_upscalers.write(tmp_path / "x2", sd_upscalers.X2_TOY)
    save_file(upscaler_cases.state(SMALL), tmp_path / "small.safetensors")
    few = {"upscaler_steps": 2, "height": 16, "width": 16}
    for name, fields in (("x4", few), ("x2", few), ("small", {"height": 16, "width": 16})):
        jobs = [job(seed, upscaler=name, **fields) for seed in range(4)]
        made = {}
        for devices in (1, 4):
            engine = engine_of(tiny, library._replace(upscalers=tmp_path), devices=devices)
            made[devices] = make(engine, jobs)
            kind, images_of = IMAGES_AT_ONCE[name]
            # A batch of four goes over four devices at once, one image on each.
            assert [images_of(key) for key, *_ in engine._execution.devices._programs if key[0] == kind] == [devices]
        assert same(made[1], made[4])


def test_upscalers_that_are_diffusion_models(tiny, library, tmp_path):
    sd_upscalers.write(tmp_path / "x4", sd_upscalers.X4_TOY)
    sd_upscalers.write(tmp_path / "x2", sd_upscalers.X2_TOY)
    engine = engine_of(tiny, library._replace(upscalers=tmp_path), devices=1)
    few = {"upscaler_steps": 2, "height": 16, "width": 16}
    strange = dataclasses.replace(job(70, upscaler="x4", **few), prompt="a (cat", prompt_problems="accept")
    jobs = [strange, job(71, upscaler="x2", **few), job(72, upscaler="x2", upscale_by=3.0, **few)]
    results = make(engine, jobs)
    assert [result.image.shape for result in results] == [(64, 64, 3), (32, 32, 3), (48, 48, 3)]
    assert same(make(engine, jobs[1:2]), results[1:2])
    assert len({result.metadata["upscaler_digest"] for result in results}) == 2
    for wrong, expected in (
        ({"upscaler_noise_level": 400}, "noise_level = 400"),
        ({"hires_scale": 2.0, "hires_upscaler": "x4"}, "is a diffusion model"),
    ):
        with pytest.raises(sdjax.JobError, match=expected):
            engine.prepare(dataclasses.replace(jobs[0], **wrong))


def test_only_prompts_that_the_x2_upscaler_reads_have_to_fit(tiny, library, tmp_path):
    sd_upscalers.write(tmp_path / "x2", sd_upscalers.X2_TOY)
    engine = engine_of(tiny, library._replace(upscalers=tmp_path), devices=1)
    asked = {"seed": 1, "upscaler_steps": 2, "width": 16, "height": 16}
    long = sdjax.Job(prompt="a cat", negative_prompt="a dog " * 60, upscaler="x2", upscaler_guidance_scale=1.0, **asked)
    assert engine.prepare(long).metadata["upscaler"] == "x2"
    with pytest.raises(sdjax.JobError, match="does not fit"):
        engine.prepare(dataclasses.replace(long, upscaler_guidance_scale=2.0))


@pytest.mark.parametrize("factor, runs", [(1.0, 1), (1.5, 1), (4.0, 1), (5.0, 2)])
def test_a_network_enlarges_as_often_as_it_takes_and_once_at_least(tiny, library, tmp_path, factor, runs):
    save_file(upscaler_cases.state(SMALL), tmp_path / "small.safetensors")
    network = read_upscaler(tmp_path / "small.safetensors")
    engine = engine_of(tiny, library._replace(upscalers=tmp_path), devices=1)
    size = {"height": 16, "width": 32}
    plain, larger = make(engine, [job(1, **size), job(1, upscaler="small", upscale_by=factor, **size)])
    image = plain.image
    for _ in range(runs):
        image = upscaler_cases.enlarged(network, image[None]).images[0]
    height, width = round(16 * factor), round(32 * factor)
    expected = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.LANCZOS)
    assert np.array_equal(larger.image, np.asarray(expected))


def test_an_image_that_is_too_large_for_a_network_is_refused(tiny, library, tmp_path):
    save_file(upscaler_cases.state(SMALL), tmp_path / "small.safetensors")
    engine = engine_of(tiny, library._replace(upscalers=tmp_path), devices=1)
    with pytest.raises(sdjax.JobError, match="8192x8192 pixels are too large for it, which enlarges 4 times"):
        engine.prepare(job(1, upscaler="small", upscale_by=1.0, height=8192, width=8192))


def test_greys_that_a_checkpoint_of_masks_does_not_see_are_an_error(tmp_path):
    grey = {**conditioned.FILES, "mask.png": conditioned.png(np.full((32, 32), 100, np.uint8))}
    model = sdjax.load(toys.write_toy(tmp_path, conditioned.MODELS["tiny_inpaint"].toy))
    engine = engine_of(model, sdjax.Library(), 1, read_image=grey.__getitem__)
    with pytest.raises(sdjax.JobError, match="no pixel is at least half white"):
        engine.prepare(job(1, **in_mask))


def test_each_way_of_enlarging_a_finished_image(engine):
    results = make(engine, [job(60, upscaler=name, upscale_by=2.0) for name in PIXEL_UPSCALERS])
    assert {result.image.shape for result in results} == {(2 * SIDE, 2 * SIDE, 3)}
    plain = make(engine, [dataclasses.replace(job(60))])[0].image
    assert np.array_equal(results[PIXEL_UPSCALERS.index("nearest")].image[::2, ::2], plain)


def test_a_prompt_goes_on_switching_in_the_second_pass(engine):
    asked = job(70, steps=4, hires_scale=2.0, hires_steps=8, hires_strength=1.0)
    task = engine.prepare(dataclasses.replace(asked, prompt="a [red:green:1.5] apple"))
    first, second = ([row[0] for row in each.read.schedule] for each in task.samples)
    assert len(set(first)) == 1
    assert second == [first[0]] * 5 + [second[-1]] * 3 and second[-1] != first[0]


def test_a_prompt_that_switches_in_neither_pass_is_refused(engine):
    asked = job(71, steps=4, hires_scale=2.0, hires_steps=8, hires_strength=1.0)
    with pytest.raises(sdjax.JobError, match="12 of 4 steps and 8 of the second pass"):
        engine.prepare(dataclasses.replace(asked, prompt="a [red:green:12] apple"))


def test_greys_of_a_mask_are_shares_or_made_binary_as_by_diffusers(engine):
    soft, hard = (
        engine.prepare(job(72, **from_cat, mask_image="soft.png", binarize_mask=binary)) for binary in (False, True)
    )
    np.testing.assert_array_equal(hard.first.images.latent_mask, soft.first.images.latent_mask >= 0.5)
    assert ((soft.first.images.latent_mask > 0) & (soft.first.images.latent_mask < 1)).any()
    assert hard.id != soft.id
    # Pixels are put back by the soft one, as there.
    np.testing.assert_array_equal(hard.first.images.mask, soft.first.images.mask)


def test_how_a_multistep_sampler_begins_is_in_the_id_only_where_it_has_a_say(engine):
    def ids(**fields):
        return {engine.prepare(job(73, **fields, multistep_start=start)).id for start in ("diffusers", "k_diffusion")}

    assert len(ids(**from_cat, strength=0.5, sampler="plms")) == 2
    assert len(ids(hires_scale=2.0, sampler="lms")) == 2
    assert len(ids(**from_cat, strength=0.5, sampler="plms", timestep_spacing="k_diffusion")) == 1
    assert len(ids(**from_cat, strength=0.5, sampler="euler")) == 1
    assert len(ids(sampler="plms")) == 1
