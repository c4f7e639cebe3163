"""The command line: exit statuses, and messages that say what to do, without a traceback."""

import gzip
import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

import sdjax
from pipelines import cli
from sdjax.storage import read_jsonl, write_jsonl
from tests.pipelines.conftest import Finished, ended, finish, start

# Of the runs in this process, so that the command finds their images.
SETTINGS = ["--set", "engine.batch_size=1", "--set", "steps=2", "--set", "sampler=euler"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red apple\nthe cat\n")
    return path


@pytest.fixture(scope="module")
def made(prompts, run_here, tmp_path_factory) -> Path:
    """An output of two images; only to be read."""
    out = tmp_path_factory.mktemp("made")
    run_here(prompts, out)
    return out


@pytest.fixture
def out(made, tmp_path) -> Path:
    """A copy to tamper with."""
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> Callable[..., Finished]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture
def generate(run, tiny_folder) -> Callable[..., Finished]:
    """Runs `sdjax generate` on the toy, without a bar."""

    def generate(prompts: Path, out: Path, *more: object) -> Finished:
        return run("generate", prompts, out, "--quiet", "--model", tiny_folder, *SETTINGS, *more)

    return generate


def assert_clear(done: Finished, *words: object) -> None:
    """One line of an error that has these words in it."""
    assert done.status == 1 and done.err.startswith("error: ") and "Traceback" not in done.err, done
    assert all(str(word) in done.err for word in words), done.err


# --- generate ---


def test_a_run_shows_its_progress_and_its_counts_add_up(prompts, made, tiny_folder, tmp_path):
    """As a user runs it: with a config file, what is set before what is in the file, and Beam's flags."""
    (tmp_path / "run.yaml").write_text(
        "engine:\n  batch_size: 1\njob:\n  sampler: euler\n  steps: 9\nrun:\n  seed: 0\n"
    )
    more = ["--config", tmp_path / "run.yaml", "--set", "steps=2", "--repeat", "2", "--", "--direct_num_workers=1"]
    done = finish(start(["generate", prompts, tmp_path / "out", "--model", tiny_folder, *more]))
    assert done.status == 0, done.err
    assert [" ".join(line.split()) for line in done.out.splitlines()] == [
        "rows 2 2 good, 0 rejected",
        "images 4 4 made, 0 there already, 0 the same as others, 0 failed",
        f"written {tmp_path / 'out' / 'metadata.jsonl'}",
    ]
    assert "4/4" in done.err and "images/s" in done.err and "Traceback" not in done.err
    old, new = ({row["id"] for row in read_jsonl(str(each / "metadata.jsonl"))} for each in (made, tmp_path / "out"))
    assert old < new


def test_a_second_run_says_that_all_is_there_and_names_the_rejects(generate, out, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "the cat"}\n{"steps": 5}\n')
    done = generate(path, out)
    assert done.status == 0 and "1 good, 1 rejected" in done.out and "0 made, 1 there already" in done.out
    assert f"rejects  {out / 'rejects.jsonl'}" in done.out
    [reject] = read_jsonl(str(out / "rejects.jsonl"))
    assert reject["line"] == 2 and "there is no prompt" in reject["reason"]


def test_prompt_files_that_can_not_be_used_are_named(generate, tmp_path):
    assert_clear(generate(tmp_path / "gone.txt", tmp_path / "out"), tmp_path / "gone.txt", "check the path")
    (tmp_path / "a[b].txt").write_text("")
    assert_clear(generate(tmp_path / "a[b].txt", tmp_path / "out"), tmp_path / "a[b].txt", "no prompts in it")
    (tmp_path / "x.csv").write_text("prompt,colour\na,b\n")
    assert_clear(generate(tmp_path / "x.csv", tmp_path / "out"), "unknown column 'colour'", "Rename or remove it")


def test_an_output_that_can_not_be_written_is_named(generate, prompts):
    assert_clear(generate(prompts, prompts / "out"), prompts / "out", "choose another output")
    assert_clear(generate(prompts, "/proc/self/out"), "/proc/self/out")


def test_a_config_that_can_not_be_is_told_with_what_is_near(generate, prompts, tmp_path):
    for setting, words in (
        ("samper=euler", "unknown key 'samper' (did you mean 'sampler'?)"),
        ("sampler=eular", "(did you mean 'euler'?)"),
        ("steps=.nan", "steps = '.nan': expected"),
        ("steps", "expected KEY=VALUE"),
        ("output.format=[png]", "output.format = '[png]': expected one of"),
        ("model.dtype={a: b}", "expected one of float32"),
        ("dtype=bfloat16", "unknown key 'dtype': it is model.dtype"),
        ("run.shards=0", "run.shards = 0: expected a whole number from 1 to 1048576"),
        ("height=9", "height = 9: expected a multiple of 2"),
        ("width=99999", "width = 99999: expected"),
    ):
        assert_clear(generate(prompts, tmp_path / "out", "--set", setting), words)
    assert_clear(generate(prompts, tmp_path / "out", "--config", tmp_path / "gone.yaml"), "there is no such file")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_told_in_one_line(run, prompts, tmp_path):
    done = run("generate", prompts, tmp_path / "out", "--quiet", "--model", tmp_path / "none")
    assert_clear(done, f"there is no model '{tmp_path / 'none'}'", "emoji")
    assert "Nothing is lost" not in done.err and not (tmp_path / "out").exists()


def test_flags_that_beam_does_not_know_are_told(generate, prompts, tmp_path):
    done = generate(prompts, tmp_path / "out", "--", "--direct_num_wrkers=2")
    assert_clear(done, "Beam knows no flag --direct_num_wrkers")
    assert_clear(generate(prompts, tmp_path / "out", "--", "--runner=direct", "--parallelsm=2"), "--parallelsm")
    assert_clear(generate(prompts, tmp_path / "out", "--", "--runner=InteractiveRunner"), "it is for notebooks")
    assert not (tmp_path / "out").exists()


def test_another_format_into_an_output_is_told(generate, prompts, out):
    done = generate(prompts, out, "--set", "output.format=webp")
    assert_clear(done, f"{out}/images/", "in another format than webp")
    assert "Nothing is lost" not in done.err


def test_a_run_that_could_make_nothing_or_not_all_has_failed(generate, out, tmp_path):
    (tmp_path / "bad.csv").write_text("prompt,steps\na,-1\n")
    done = generate(tmp_path / "bad.csv", out)
    assert done.status == 1 and "0 good, 1 rejected" in done.out
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"the cat\n")[:-4])
    done = generate(tmp_path / "cut.txt.gz", out)
    assert done.status == 1 and "1 there already" in done.out and "broke off" in done.out
    assert f"rejects  {out / 'rejects.jsonl'}" in done.out


def test_a_run_stopped_by_the_keyboard_says_so_and_goes_on_later(tiny_folder, tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"a cat {number}\n" for number in range(100)))
    settings = ["--set", "engine.batch_size=1", "--set", "sampler=euler", "--set", "steps=300"]
    command = ["generate", tmp_path / "p.txt", tmp_path / "out", "--quiet", "--model", tiny_folder, *settings]

    def heed() -> None:
        # What runs in the background is started with the signal ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = start(command, preexec_fn=heed)
    while not list(tmp_path.glob("out/images/*/[0-9a-f]*")) and not ended(process, 0.05):
        pass
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert (done.status, done.err) == (130, "stopped; the same command goes on from here\n")


def test_damaged_metadata_are_told_and_made_anew_when_deleted(generate, prompts, made, out):
    manifest = out / "metadata.jsonl"
    for damaged in (manifest.read_bytes()[:-30], b"{}\n"):
        manifest.write_bytes(damaged)
        assert_clear(generate(prompts, out), f"{manifest}, line ", "delete")
    manifest.unlink()
    assert generate(prompts, out).status == 0
    assert manifest.read_bytes() == (made / "metadata.jsonl").read_bytes()


def test_a_full_disk_is_told_with_the_file_that_did_not_fit_and_nothing_is_lost(prompts, made, tiny_folder, tmp_path):
    def small_files_only() -> None:
        # What the kernel does at this limit is what it does on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))

    arguments = ["generate", prompts, tmp_path, "--quiet", "--model", tiny_folder, *SETTINGS]
    done = finish(start(arguments, preexec_fn=small_files_only))
    assert done.status == 1 and "Traceback" not in done.err, done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/images/" in line and "no room left: free some" in line and "Nothing is lost" in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- The other commands ---


def test_verify_says_what_it_found_and_fails_if_something_is_wrong(run, out):
    done = run("verify", out, "--trust")
    assert done.status == 0 and "2 images, 2 made again, 2 the same to the last byte, 0 problems" in done.out
    row = next(read_jsonl(str(out / "metadata.jsonl")))
    (out / row["file_name"]).unlink()
    done = run("verify", out, "--sample", "0")
    assert done.status == 1 and f"{row['file_name']}: stands in metadata.jsonl" in done.out
    assert "1 images, 0 made again" in done.out


def test_verify_tells_if_there_was_nothing_to_compare_with(run, out, sd2_folder, tmp_path):
    done = run("verify", out, "--model", sd2_folder)
    assert done.status == 1 and f"2 of another model than {sd2_folder}, not compared" in done.out
    summary = json.loads((out / "summary.json").read_text())
    summary["config"]["model"]["name"] = str(tmp_path / "moved")
    (out / "summary.json").write_text(json.dumps(summary))
    done = run("verify", out, "--trust")
    assert done.status == 1 and "error: there is no model" in done.err and "say where with --model" in done.err
    # What needs no model does without.
    assert run("verify", out, "--sample", "0").status == 0


def test_verify_of_what_is_no_output_or_no_share_is_an_error(run, tmp_path):
    assert_clear(run("verify", tmp_path), tmp_path / "summary.json", "check the path")
    assert run("verify", tmp_path, "--sample", "2").status == 2


def test_a_sheet_shows_the_images(run, made, tmp_path):
    done = run("sheet", made, "--file", tmp_path / "new" / "sheet.png", "--columns", "1")
    assert done.status == 0 and done.out == f"2 images in {tmp_path / 'new' / 'sheet.png'}\n"
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.height > 2 * sheet.width > 200
    done = run("sheet", made, "--file", tmp_path / "one.png", "--limit", "1")
    assert done.out.startswith("1 images")
    assert_clear(run("sheet", made, "--columns", "0"), "columns = 0", "expected at least 1")
    assert_clear(run("sheet", tmp_path), tmp_path / "metadata.jsonl", "check the path")


def test_sweeps_of_the_command_line_end_on_a_comparison_sheet(run, generate, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("the {cat|dog}\n")
    sweeps = ["--sweep", "sampler=Euler,DDIM", "--sweep", "steps=1..3", "--set", "run.combinations=all"]
    done = generate(path, tmp_path / "out", *sweeps)
    assert (done.status, done.err) == (0, "") and "12 made" in done.out
    done = run("grid", tmp_path / "out", "--x", "steps", "--y", "sampler=Euler,ddim", "--z", "prompt")
    assert (done.status, done.err) == (0, "") and "12 images in" in done.out
    with Image.open(tmp_path / "out" / "grid.png") as page:
        assert page.width > 3 * 96 and page.height > 4 * 96
    done = run(
        "grid",
        tmp_path / "out",
        "--x",
        "steps=1,2",
        "--y",
        "sampler",
        "--where",
        "prompt=the cat",
        "--file",
        tmp_path / "g.png",
    )
    assert done.status == 0 and "4 images in" in done.out
    assert_clear(run("grid", tmp_path / "out", "--x", "steps"), "several images", "they differ in", "--where")


def test_settings_that_rows_or_sweeps_make_whole_are_taken(generate, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "the cat"}\n{"prompt": "a dog", "sampler": "tcd"}\n{"prompt": "a", "variation_seed": 3}\n'
    )
    more = ["--set", "eta=0.5", "--set", "variation_strength=0.5", "--sweep", "sampler=ddim,Euler a"]
    done = generate(path, tmp_path / "out", *more)
    assert done.status == 0 and "2 rejected" in done.out and "2 made" in done.out
    reasons = [row["reason"] for row in read_jsonl(str(tmp_path / "out" / "rejects.jsonl"))]
    assert all("variation_strength = 0.5: expected variation_seed with it" in reason for reason in reasons)


def test_a_row_without_numbers_to_step_by_stops_no_other(generate, tmp_path):
    path = tmp_path / "prompts.jsonl"
    tcd = {"prompt": "a", "steps": 2, "sampler": "tcd", "schedule": "AYS"}
    path.write_text(json.dumps(tcd) + '\n{"prompt": "a", "preview_every": 1, "steps": 99}\n')
    done = generate(path, tmp_path / "out")
    assert done.status == 0 and "1 good, 1 rejected" in done.out
    [reject] = read_jsonl(str(tmp_path / "out" / "rejects.jsonl"))
    assert "preview_every = 1: of 99 steps 99 would be kept; expected 2 or more" in reject["reason"]


def test_sweeps_and_wildcards_that_can_not_be_are_told(generate, prompts, tmp_path):
    out = tmp_path / "out"
    assert_clear(generate(prompts, out, "--sweep", "steps=many"), "--sweep steps=many", "steps = 'many'")
    assert_clear(generate(prompts, out, "--sweep", "step=1,2"), "did you mean 'steps'?")
    assert_clear(generate(prompts, out, "--sweep", "sampler=euler,eular"), "did you mean 'euler'?")
    assert_clear(generate(prompts, out, "--wildcards", tmp_path / "no"), "no", "there is no such folder")
    assert not out.exists() or not list(out.glob("images/*/*"))


def test_inspect_tells_of_an_image_and_of_a_model(run, made, tiny_folder, tmp_path):
    row = next(read_jsonl(str(made / "metadata.jsonl")))
    done = run("inspect", made / row["file_name"])
    told = dict(line.split(None, 1) for line in done.out.splitlines() if len(line.split(None, 1)) == 2)
    assert (
        done.status == 0
        and told["image"] == "16x16 RGB PNG"
        and told["prompt"] == row["prompt"]
        and told["id"] == row["id"]
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    assert "made by something else" in run("inspect", tmp_path / "other.png").out
    chunks = PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 20")
    Image.new("RGBA", (8, 9)).save(tmp_path / "theirs.png", pnginfo=chunks)
    told = run("inspect", tmp_path / "theirs.png").out
    assert "8x9 RGBA PNG" in told and "a cat" in told and "Steps: 20" in told
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert_clear(run("inspect", tmp_path / "m.safetensors"), tmp_path / "m.safetensors", "can't be read as safetensors")
    done = run("inspect", tiny_folder)
    assert done.status == 0 and "PNDMScheduler" in done.out
    assert_clear(run("inspect", tmp_path / "none"), "there is no model")


CODES = "\x1b]0;title\x07\x9b31m\u202e[red]"
SHOWN = r"\x1b]0;title\x07\x9b31m\u202e[red]"


def test_what_files_hold_is_never_obeyed_by_the_terminal(run, generate, prompts, out, tiny_folder, tmp_path):
    """Metadata of weights, texts in images, names in configs, names of files, rows, arguments."""
    weights, image, model = tmp_path / "w.safetensors", tmp_path / "p.png", tmp_path / "model"
    save_file({"a": np.zeros(1, np.float32)}, weights, {"modelspec.title": CODES, CODES: "x"})
    texts = PngInfo()
    texts.add_itxt("parameters", f"a cat {CODES}\nSteps: 20")
    Image.new("RGB", (8, 8)).save(image, pnginfo=texts)
    shutil.copytree(tiny_folder, model)
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "_class_name": f"Other{CODES}"}))
    row = next(read_jsonl(str(out / "metadata.jsonl")))
    with open(out / "metadata.jsonl", "a") as manifest:
        manifest.write(json.dumps({**row, "file_name": f"images/{CODES}.png"}) + "\n")
    images = tmp_path / "pictures"
    images.mkdir()
    (images / f"{CODES}.png").write_bytes(b"")
    for command in (
        ("inspect", weights),
        ("inspect", image),
        ("inspect", model),
        ("inspect", tmp_path / CODES),
        ("verify", out, "--sample", "0"),
        ("sheet", tmp_path / CODES),
        ("sheet", out, "--file", tmp_path / f"{CODES}.png"),
        ("grid", out, "--x", CODES),
        ("depth", images, tmp_path / "maps", "--model", tmp_path / CODES),
        ("convert", tmp_path / CODES, tmp_path / "new"),
        ("env", CODES),
        ("generate", tmp_path / CODES, tmp_path / "new", "--quiet"),
    ):
        done = run(*command)
        assert SHOWN in done.out + done.err, (command, done)
        assert not set("\x1b\x07\x9b\u202e") & set(done.out + done.err), (command, done)


def test_env_tells_versions_and_devices(run):
    done = run("env")
    assert done.status == 0 and sdjax.__version__ in done.out and done.out.count("device ") == 4


def test_bad_usage_has_a_status_of_its_own(run, made):
    assert run().status == run("generate").status == run("paint").status == 2
    done = run("verify", made, "--", "--direct_num_workers=2")
    assert done.status == 2 and "only generate takes Beam's flags" in done.err


def test_the_summary_tells_how_the_run_was_configured(made, tiny_folder):
    summary = json.loads((made / "summary.json").read_text())
    config = summary["config"]
    assert config["model"]["name"] == str(tiny_folder) and config["engine"]["batch_size"] == 1
    assert config["job"] == {"sampler": "euler", "steps": 2}
    assert summary["counts"] == {
        "rows": 2,
        "rejected_rows": 0,
        "broken_files": 0,
        "cut_prompts": 0,
        "wanted": 2,
        "made": 2,
        "there": 0,
        "duplicates": 0,
        "failed": 0,
        "damaged": 0,
    }


def test_letters_that_no_font_has_are_told_by_sheet_and_grid(run, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    rows = [row | {"prompt": f"{row['prompt']} \U000ffff0"} for row in read_jsonl(str(out / "metadata.jsonl"))]
    write_jsonl(str(out / "metadata.jsonl"), rows)
    for command in (("sheet", out), ("grid", out, "--x", "prompt")):
        assert "note: no font here has \U000ffff0" in run(*command).out


def test_a_folder_with_a_tokenizer_nested_without_end_is_not_converted(run, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (model / "tokenizer" / "tokenizer.json").write_text("[" * 200_000)
    assert_clear(run("convert", model, tmp_path / "whole.safetensors"), "tokenizer.json")
