import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

import sdjax
from sdjax.training import recognition as rec
from sdjax.training import scenes, state

NAMES = ("red apple", "owl", "brick", "ring")


def sprites() -> tuple[Image.Image, ...]:
    """Four that differ in form and colour, each dark and light, so that they stand out from any background."""
    forms = itertools.product((False, True), repeat=2)
    images = []
    for (outer, inner), dark in zip(forms, ("#145a14", "#5a145a", "#781414", "#14146e"), strict=True):
        sheet = Image.new("RGBA", (96, 96))
        draw = ImageDraw.Draw(sheet)
        (draw.ellipse if outer else draw.rectangle)((0, 0, 95, 95), fill=dark)
        (draw.ellipse if inner else draw.rectangle)((24, 24, 71, 71), fill="#faf078")
        images.append(sheet)
    return tuple(images)


def render(scene: scenes.Scene) -> np.ndarray:
    return scenes.render(scene, sprites())


def one_hot(labels: np.ndarray, count: int = len(NAMES)) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[labels]


def test_an_example_follows_from_its_seed_and_number_and_has_one_concept():
    for index in range(50):
        pixels, label, scene = rec.example(7, index, sprites())
        again, _, _ = rec.example(7, index, sprites())
        assert scene.concepts == (label,)
        assert pixels.shape == (64, 64, 3)
        np.testing.assert_array_equal(pixels, again)


def test_no_render_that_is_held_out_is_trained_on():
    held_out = rec.held_out_examples(sprites(), 100)
    known = {pixels.tobytes() for pixels in held_out.pixels}
    unfiltered = {rec.example(rec.TRAIN_SEED, index, sprites())[0].tobytes() for index in range(100)}
    assert known & unfiltered, "the test needs renders that both seeds draw"
    source = rec.batches(sprites(), 20, 0, held_out)
    trained = {pixels.tobytes() for batch in itertools.islice(source, 5) for pixels in batch.pixels}
    source.close()
    assert not known & trained


def test_batches_go_on_where_a_run_was_stopped():
    held_out = rec.held_out_examples(sprites(), 1)
    whole, rest = rec.batches(sprites(), 8, 0, held_out), rec.batches(sprites(), 8, 2, held_out)
    expected, found = next(itertools.islice(whole, 2, None)), next(rest)
    whole.close(), rest.close()
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_augmentation_changes_each_image_in_its_own_way_and_stays_in_range():
    pixels = np.repeat(render(scenes.Scene((0,), "pink"))[None] / np.float32(127.5) - 1, 4, axis=0)
    changed = np.asarray(jax.jit(rec.augmented)(pixels, jax.random.key(0)))
    assert changed.shape == pixels.shape
    assert np.abs(changed).max() <= 1
    assert np.abs(changed - pixels).mean() < 0.25, "the object must stay what it is"
    assert all(np.abs(changed[i] - changed[j]).mean() > 0.01 for i, j in itertools.combinations(range(4), 2))


def test_a_short_training_tells_simple_forms_apart_and_leaves_a_classifier_to_measure_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = state.Recipe(steps=40, learning_rate=3e-3, warmup=5, average=0.8)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes kinds of numbers
        params = rec.train(tmp_path, sprites(), recipe, batch=16, held_out_count=40)
    stored = rec.trained_classifier(tmp_path, len(NAMES))
    for found, expected in zip(jax.tree.leaves(stored), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(found, expected)
    held_out = rec.held_out_examples(sprites(), 40)
    logits = rec.classify(stored, held_out.pixels, batch=16)
    assert logits.shape == (40, len(NAMES))
    share = rec.among_best(logits, held_out.labels).mean()
    assert share > 0.7
    assert f"step 40: {100 * share:.1f} % of 40 held-out renders recognised" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"knows 4 concepts, .* has 9; remove it"):
        rec.trained_classifier(tmp_path, 9)


def test_a_measure_without_a_trained_classifier_says_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="run the stage train first"):
        rec.trained_classifier(tmp_path, 4)


def test_the_right_concept_is_looked_for_among_the_best():
    logits = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 0, 0, 0]], np.float32)
    labels = np.array([0, 2, 3])
    assert rec.among_best(logits, labels).tolist() == [True, False, False]
    assert rec.among_best(logits, labels, 3).tolist() == [True, True, False]
    assert rec.misses(logits, labels, NAMES) == ["brick: taken for red apple", "ring: taken for red apple"]


def test_figures_are_a_markdown_table():
    figures = (rec.figure("recognised", np.array([True, True, False])), rec.Figure("other", 0.5, 3000))
    assert rec.table(figures).splitlines() == [
        "| measure | share | images |",
        "|---|---:|---:|",
        "| recognised | 66.7 % | 3 |",
        "| other | 50.0 % | 3,000 |",
    ]


def test_every_concept_is_asked_for_once_and_each_colour_and_side_equally_often():
    asked = rec.prompts(NAMES)
    plain = [prompt for prompt in asked if not prompt.color and not prompt.side]
    assert [(prompt.text, prompt.label) for prompt in plain] == [
        ("a red apple", 0),
        ("an owl", 1),
        ("a brick", 2),
        ("a ring", 3),
    ]
    colors = [prompt.color for prompt in asked if prompt.color]
    sides = [prompt.side for prompt in asked if prompt.side]
    assert {colors.count(color) for color in scenes.COLORS} == {rec.COMPOSED // len(scenes.COLORS)}
    assert {sides.count(side) for side in ("left", "right")} == {rec.COMPOSED // 2}
    assert {prompt.label for prompt in asked if prompt.color} == {prompt.label for prompt in asked if prompt.side}
    texts = {prompt.text for prompt in asked}
    assert {"a red apple on an orange background", "an owl on the left"} <= texts


@pytest.mark.parametrize("color", scenes.COLORS)
@pytest.mark.parametrize("side", ["", "left", "right"])
def test_background_and_side_of_a_render_are_those_of_its_scene(color: str, side: str):
    for concept, size in itertools.product(range(len(NAMES)), ("", "small")):
        pixels = render(scenes.Scene((concept,), color, size, side))
        assert rec.background(pixels) == color
        assert rec.side_of(pixels) == side


def test_an_empty_image_has_no_side():
    assert rec.side_of(np.full((64, 64, 3), 200, np.uint8)) == ""


def test_the_summary_counts_each_kind_of_prompt_apart():
    asked = (
        rec.Prompt("a red apple", 0),
        rec.Prompt("an owl", 1),
        rec.Prompt("a brick on a red background", 2, color="red"),
        rec.Prompt("a brick on a blue background", 2, color="blue"),
        rec.Prompt("a ring on the left", 3, side="left"),
    )
    pixels = np.stack(
        [render(scenes.Scene((prompt.label,), prompt.color or "red", side=prompt.side)) for prompt in asked[:3]]
        + [render(scenes.Scene((2,), "green")), render(scenes.Scene((3,), "white", side="right"))]
    )
    figures = rec.summary(asked, pixels, one_hot(np.array([0, 0, 2, 2, 3])))
    assert [(line.share, line.images) for line in figures] == [(0.5, 2), (1, 2), (0.5, 2), (1, 2), (0, 1), (1, 1)]


def test_the_sheet_frames_misses_in_red():
    pixels = np.full((2, 8, 8, 3), 7, np.uint8)
    sheet = rec.framed(pixels, np.array([True, False]))
    assert sheet.shape == (2, 14, 14, 3)
    assert sheet[0, 0, 5].tolist() == [230, 0, 30]
    assert sheet[1, 0, 5].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(sheet[:, 3:-3, 3:-3], pixels)


def test_each_prompt_becomes_a_job_with_a_seed_of_its_own():
    asked = (rec.Prompt("a red apple", 0), rec.Prompt("an owl on the left", 1, side="left"))
    settings = {"steps": 12, "guidance_scale": 4.0, "sampler": "euler"}
    assert rec.jobs(asked, seed=3, **settings) == (
        sdjax.Job(prompt="a red apple", seed=3, **settings),
        sdjax.Job(prompt="an owl on the left", seed=4, **settings),
    )
