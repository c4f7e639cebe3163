"""What a run leaves behind: images, metadata, rejects, counts; and what a second run makes of it."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from pipelines.sinks import open_sink
from pipelines.sinks.manifest_rows import without_sizes
from pipelines.sources.prompts import PromptFileError
from pipelines.transforms.manifest import Counts
from sdjax import storage
from sdjax.images.encode import decode, read_metadata, read_parameters
from sdjax.jobs.records import job_of
from sdjax.storage import StorageError, read_jsonl, write_jsonl

SEED = {"run.seed": 3}
PROMPTS = ("a red apple", "the cat", "a castle on the green")


def write_prompts(path: Path, *prompts: str) -> Path:
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return path


def times(out: Path) -> dict[str, int]:
    """When each image of an output was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("images/*/*")}


def by_prompt(out: Path) -> dict[str, dict]:
    return {row["prompt"]: row for row in read_jsonl(str(out / "metadata.jsonl"))}


def counted(**counts: int) -> Counts:
    """Counts, none of what is not said."""
    return Counts(**{**dict.fromkeys(Counts._fields, 0), **counts})


@pytest.fixture(scope="module")
def made(run_here, tmp_path_factory) -> Path:
    """An output of three prompts; only to be read."""
    folder = tmp_path_factory.mktemp("made")
    counts = run_here(write_prompts(folder / "prompts.txt", *PROMPTS), folder / "out", **SEED)
    assert counts == counted(rows=3, rejected_rows=0, wanted=3, made=3, there=0)
    return folder / "out"


@pytest.fixture
def again(made, run_here, tmp_path) -> Callable[..., Counts]:
    """Runs into a copy of that output, in `out` of the test's folder."""
    shutil.copytree(made, tmp_path / "out")

    def run(*prompts: str, **keys) -> Counts:
        return run_here(write_prompts(tmp_path / "p.txt", *prompts), tmp_path / "out", **{**SEED, **keys})

    return run


# --- Outputs ---


def test_an_output_holds_images_metadata_and_a_summary_and_nothing_else(made):
    files = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    rows = list(read_jsonl(str(made / "metadata.jsonl")))
    assert files == {"metadata.jsonl", "summary.json", *(row["file_name"] for row in rows)}
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    summary = json.loads((made / "summary.json").read_text())
    assert summary["counts"]["made"] == 3 and summary["config"]["job"] == {"sampler": "euler", "steps": 2}


def test_hugging_face_datasets_opens_an_output_with_its_metadata_also_while_a_run_is_at_work_there(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    for name in (storage.LOCK, f"{storage.TEMPORARY}1", f"images/{storage.TEMPORARY}2"):
        (out / name).touch()
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"), split="train")
    rows = by_prompt(made)
    assert set(loaded.column_names) == {"image", *rows[PROMPTS[0]]} - {"file_name"}
    assert sorted(loaded["prompt"]) == sorted(PROMPTS)
    for example in loaded:
        row = rows[example["prompt"]]
        assert {name: example[name] for name in row if name != "file_name"} == {
            name: value for name, value in row.items() if name != "file_name"
        }
        assert np.array_equal(np.asarray(example["image"]), decode(made / row["file_name"], ""))


def test_seeds_come_back_digit_by_digit_from_other_readers_of_the_manifest(run_here, tmp_path):
    """Columns of numbers above 2^63 are floats there, or an error."""
    path, seeds = tmp_path / "rows.jsonl", [2**64 - 1, 3, 2**63]
    path.write_text("".join(json.dumps({"prompt": f"cat {seed}", "seed": seed}) + "\n" for seed in seeds))
    run_here(path, tmp_path / "out", variation_seed=2**64 - 2, variation_strength=0.5)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {(row["prompt"], row["seed"], row["variation_seed"]) for row in loaded["train"]} == {
        (f"cat {seed}", str(seed), str(2**64 - 2)) for seed in seeds
    }
    for row in by_prompt(tmp_path / "out").values():
        inside = read_metadata(tmp_path / "out" / row["file_name"], "")
        assert inside["seed"] == int(row["seed"]) and job_of(row) == job_of(inside)


def test_rows_of_earlier_versions_whose_seeds_are_numbers_are_taken_over_as_text(made, again, tmp_path):
    manifest = tmp_path / "out" / "metadata.jsonl"
    rows = [{**row, "seed": int(row["seed"])} for row in read_jsonl(str(manifest))]
    write_jsonl(str(manifest), rows)
    assert not list(open_sink(str(tmp_path / "out")).check())
    again(*PROMPTS)
    assert manifest.read_bytes() == (made / "metadata.jsonl").read_bytes()


def test_a_png_tells_its_parameters_in_the_words_of_other_tools(made):
    row = by_prompt(made)["the cat"]
    assert read_parameters(made / row["file_name"], "").startswith(
        f"the cat\nSteps: 2, Sampler: Euler, Schedule type: Uniform, CFG scale: 7.5, Seed: {row['seed']}, Size: 16x16, "
    )


def test_webp_has_the_pixels_of_png_and_jpeg_nearly(made, run_here, tmp_path):
    prompts = write_prompts(tmp_path / "p.txt", *PROMPTS)
    for kind, extension in (("webp", "webp"), ("jpeg", "jpg")):
        run_here(prompts, tmp_path / kind, **SEED, format=kind)
        for prompt, row in by_prompt(tmp_path / kind).items():
            png = by_prompt(made)[prompt]
            assert row["id"] == png["id"] and row["file_name"] == f"images/{row['id'][:2]}/{row['id']}.{extension}"
            assert row["file_size"] == (tmp_path / kind / row["file_name"]).stat().st_size
            assert without_sizes({**row, "file_name": ""}) == without_sizes({**png, "file_name": ""})
            pixels, expected = (
                decode(path, "") for path in (tmp_path / kind / row["file_name"], made / png["file_name"])
            )
            if kind == "webp":
                assert np.array_equal(pixels, expected)
            else:
                assert np.abs(pixels.astype(int) - expected).mean() < 16
            assert read_metadata(tmp_path / kind / row["file_name"], "")["prompt"] == prompt


# --- Resuming ---


def test_a_second_run_makes_nothing_and_says_so(made, again, tmp_path):
    before = times(tmp_path / "out")
    assert again(*PROMPTS) == counted(rows=3, rejected_rows=0, wanted=3, made=0, there=3)
    assert times(tmp_path / "out") == before
    assert (tmp_path / "out" / "metadata.jsonl").read_bytes() == (made / "metadata.jsonl").read_bytes()


def test_more_prompts_make_only_what_is_missing(made, again, tmp_path):
    before = times(tmp_path / "out")
    assert again("a dog", *PROMPTS, "a dog") == counted(rows=5, wanted=5, made=1, there=3, duplicates=1)
    after = times(tmp_path / "out")
    assert len(after) == 4 and before.items() <= after.items()
    assert by_prompt(tmp_path / "out").keys() == {"a dog", *PROMPTS}


def test_fewer_prompts_forget_nothing(again, tmp_path):
    assert again(PROMPTS[0]).there == 1
    assert by_prompt(tmp_path / "out").keys() == set(PROMPTS)


def test_a_deleted_image_is_made_again_with_the_same_bytes(made, again, tmp_path):
    name = by_prompt(made)["the cat"]["file_name"]
    (tmp_path / "out" / name).unlink()
    assert again(*PROMPTS).made == 1
    assert (tmp_path / "out" / name).read_bytes() == (made / name).read_bytes()


def test_lost_metadata_are_read_from_the_images(made, again, tmp_path):
    (tmp_path / "out" / "metadata.jsonl").unlink()
    assert again(*PROMPTS).made == 0
    assert (tmp_path / "out" / "metadata.jsonl").read_bytes() == (made / "metadata.jsonl").read_bytes()


def test_another_config_makes_other_images_beside_those(made, again, tmp_path):
    assert again(*PROMPTS, steps=3).made == 3
    rows = list(read_jsonl(str(tmp_path / "out" / "metadata.jsonl")))
    assert len({row["id"] for row in rows}) == 6 and sorted(row["steps"] for row in rows) == [2, 2, 2, 3, 3, 3]


def test_repeats_have_seeds_of_their_own_that_do_not_depend_on_the_place_of_a_row(made, again, tmp_path):
    assert again("a dog", *reversed(PROMPTS), repeat=2) == counted(rows=4, wanted=8, made=5, there=3)
    rows = list(read_jsonl(str(tmp_path / "out" / "metadata.jsonl")))
    assert len({row["seed"] for row in rows}) == 8
    assert {row["id"] for row in by_prompt(made).values()} < {row["id"] for row in rows}


# --- Rejects ---


def test_bad_rows_are_rejects_and_their_neighbours_go_on(made, again, run_here, tmp_path):
    path = tmp_path / "rows.csv"
    rows = [
        ("prompt", "steps", "width", "sampler", "reason"),
        ("a red apple", "", "", "", None),
        ("", "5", "", "", "there is no prompt in this row"),
        ("a cat", "nan", "", "", "steps = 'nan': expected a value of type int"),
        ("a cat", "-5", "", "", "steps = -5: expected a number from 1 to 1000"),
        ("a cat", "1001", "", "", "steps = 1001: expected a number from 1 to 1000"),
        ("a cat", "", "33", "", "width = 33: expected a multiple of 2, the VAE's factor; 32 is near"),
        ("a cat", "", "", "eular", "(did you mean 'euler'?)"),
        ("the cat", "", "", "", None),
    ]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(row[:4] for row in rows)
    counts = run_here(path, tmp_path / "out", **SEED)
    assert counts == counted(rows=8, rejected_rows=6, wanted=2, made=0, there=2)
    rejects = list(read_jsonl(str(tmp_path / "out" / "rejects.jsonl")))
    expected = [(line, row[4]) for line, row in enumerate(rows, 1) if line > 1 and row[4]]
    assert [reject["line"] for reject in rejects] == [line for line, _ in expected]
    for reject, (line, reason) in zip(rejects, expected, strict=True):
        assert reason in reject["reason"] and reject["source"] == str(path)
        assert reject["text"] == path.read_text().splitlines()[line - 1]
    # And when the rows are mended the rejects go.
    assert again(*PROMPTS).rejected_rows == 0
    assert not (tmp_path / "out" / "rejects.jsonl").exists()


def test_an_unknown_key_of_an_object_is_a_reject_with_the_nearest_that_there_is(made, again, run_here, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "the cat"}\n{"prompt": "a", "sede": 1}\n{"prompt": "a", "steps": NaN}\nnone\n')
    assert run_here(path, tmp_path / "out", **SEED) == counted(rows=4, rejected_rows=3, wanted=1, there=1)
    reasons = [reject["reason"] for reject in read_jsonl(str(tmp_path / "out" / "rejects.jsonl"))]
    assert "unknown column 'sede' (did you mean 'seed'?)" in reasons[0]
    assert "NaN is no JSON" in reasons[1] and "not valid JSON" in reasons[2]


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"prompt": "a (red apple"}, "prompt, letter 3: "),
        ({"negative_prompt": "a] b"}, "negative_prompt, letter 2: "),
        ({"prompt": "[a:b:9]"}, "prompt, letter "),
        ({"prompt": "__animal__"}, "did you mean __animals__?"),
        ({"prompt": "{a|b"}, "prompt: "),
        ({"sampler": "eular"}, "sampler = 'eular': expected one of"),
        ({"schedule": "karas"}, "(did you mean 'karras'?)"),
    ],
)
def test_a_prompt_or_a_name_that_can_not_be_read_is_a_reject_with_its_row(values, reason, made, run_here, tmp_path):
    wildcards = tmp_path / "wildcards"
    wildcards.mkdir()
    (wildcards / "animals.txt").write_text("cat")
    path = tmp_path / "rows.jsonl"
    bad = {"prompt": "a cat", **values}
    path.write_text(f'{{"prompt": "the cat"}}\n{json.dumps(bad)}\n{{"prompt": "a red apple"}}\n')
    out = shutil.copytree(made, tmp_path / "out")
    counts = run_here(path, out, **SEED, wildcards=str(wildcards))
    assert counts == counted(rows=3, rejected_rows=1, wanted=2, there=2)
    [reject] = read_jsonl(str(out / "rejects.jsonl"))
    assert reject["line"] == 2 and json.loads(reject["text"]) == bad and reason in reject["reason"]


def test_templates_sweeps_and_random_seeds_are_resolved_before_a_job_gets_its_id(run_here, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a {red|blue} __things__", "combinations": "all", "seed": "1..2"}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "the cat", "seed": -1}) + "\n")
    wildcards = tmp_path / "wildcards"
    wildcards.mkdir()
    (wildcards / "things.txt").write_text("apple\ncat\n")
    out = tmp_path / "out"
    assert run_here(path, out, wildcards=str(wildcards)) == counted(rows=2, wanted=9, made=9)
    rows = list(read_jsonl(str(out / "metadata.jsonl")))
    texts = {(row["prompt"], row["seed"]) for row in rows if "prompt_template" in row}
    expected = {f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("apple", "cat")}
    assert texts == {(text, seed) for text in expected for seed in ("1", "2")}
    assert {row["prompt_template"] for row in rows if row["prompt"] != "the cat"} == {"a {red|blue} __things__"}
    [drawn] = [row["seed"] for row in rows if row["prompt"] == "the cat"]
    assert 0 <= int(drawn) < 2**48
    again = run_here(path, out, wildcards=str(wildcards))
    assert (again.there, again.made) == (8, 1)  # the random seed is another in another run


def test_steps_that_are_kept_are_there_as_a_strip_and_an_animation(run_here, tmp_path):
    path = write_prompts(tmp_path / "p.txt", "the cat")
    out = tmp_path / "out"
    assert run_here(path, out, steps=5, preview_every=2, animation="gif").made == 1
    [row] = read_jsonl(str(out / "metadata.jsonl"))
    folder = out / "steps" / row["id"][:2]
    assert {file.name for file in folder.iterdir()} == {f"{row['id']}.png", f"{row['id']}.gif"}
    with Image.open(folder / f"{row['id']}.gif") as moving:
        assert moving.n_frames == 4  # steps 1, 3 and 5, and the result
    with Image.open(folder / f"{row['id']}.png") as strip:
        assert strip.width > 4 * 96


def test_a_file_that_breaks_off_is_counted_apart_from_its_rows(made, run_here, tmp_path):
    path = tmp_path / "prompts.txt.gz"
    path.write_bytes(gzip.compress("".join(f"{prompt}\n" for prompt in PROMPTS).encode())[:-4])
    out = shutil.copytree(made, tmp_path / "out")
    assert run_here(path, out, **SEED) == counted(rows=3, wanted=3, there=3, broken_files=1)
    [reject] = read_jsonl(str(out / "rejects.jsonl"))
    assert reject["line"] == 0 and "break off after line 3" in reject["reason"]


def test_prompts_that_are_cut_are_counted(made, run_here, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    path = tmp_path / "rows.jsonl"
    long = {"prompt": "the dog " * 100, "prompt_syntax": "plain"}
    path.write_text(json.dumps({"prompt": "the cat"}) + "\n" + json.dumps(long) + "\n")
    assert run_here(path, out, **SEED) == counted(rows=2, wanted=2, made=1, there=1, cut_prompts=1)
    [row] = [row for row in read_jsonl(str(out / "metadata.jsonl")) if row["prompt_cut"]]
    assert row["prompt_cut"].startswith("the dog") or row["prompt_cut"].startswith("dog")


def test_a_seed_that_is_derived_does_not_depend_on_what_the_configuration_says(made, again, tmp_path):
    again(*PROMPTS, steps=3)
    rows = [(row["prompt"], row["steps"], row["seed"]) for row in read_jsonl(str(tmp_path / "out" / "metadata.jsonl"))]
    seeds = {(prompt, seed) for prompt, _, seed in rows}
    assert sorted(rows) == sorted((prompt, steps, seed) for prompt, seed in seeds for steps in (2, 3))
    assert len(seeds) == 3


def test_an_image_that_is_not_finite_is_a_reject_and_its_neighbours_go_on(tiny_folder, run_here, tmp_path):
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    [file] = (broken / "text_encoder").glob("*.safetensors")
    weights = load_file(file)
    words = json.loads((broken / "tokenizer" / "vocab.json").read_text())
    weights["text_model.embeddings.token_embedding.weight"][words["castle</w>"]] = np.nan
    save_file(weights, file)
    counts = run_here(write_prompts(tmp_path / "p.txt", *PROMPTS), tmp_path / "out", model=str(broken))
    assert counts == counted(rows=3, wanted=3, made=2, failed=1)
    [reject] = read_jsonl(str(tmp_path / "out" / "rejects.jsonl"))
    assert "NaN or infinity in float32" in reject["reason"]
    assert (reject["source"], reject["line"], reject["text"]) == (str(tmp_path / "p.txt"), 3, PROMPTS[2])
    assert by_prompt(tmp_path / "out").keys() == set(PROMPTS[:2])


# --- What stops a run before it begins ---


@pytest.mark.parametrize("name, data", [("x.txt", ""), ("x.csv", "prompt\n"), ("x.docx", "a"), ("x.csv", "promt\na\n")])
def test_a_file_that_can_not_be_used_stops_the_run_before_anything_is_made(run_here, tmp_path, name, data):
    (tmp_path / name).write_text(data)
    with pytest.raises(PromptFileError, match=str(tmp_path / name)):
        run_here(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_can_not_be_written_stops_the_run_before_anything_is_made(run_here, tmp_path):
    prompts = write_prompts(tmp_path / "p.txt", "a cat")
    for out in (prompts, prompts / "out", Path("/proc/self/out")):
        with pytest.raises(StorageError, match=f"^{out}"):
            run_here(prompts, out)
