import re
import tracemalloc
from pathlib import Path

import pytest

from pipelines.config import RunConfig, RunConfigError
from pipelines.config.sections import KEYS, EngineSection, LibrarySection, ModelSection, RunSection
from pipelines.config.settings import FORMER, make, read_file, read_settings


def test_keys_are_of_sections_and_a_field_of_all_jobs_is_short():
    made = make({"model.name": "here", "run.repeat": 2, "steps": 5, "sampler": None, "job.guidance_scale": 3})
    assert made == RunConfig(
        ModelSection(name="here"), run=RunSection(repeat=2), job=(("guidance_scale", 3), ("steps", 5))
    )
    assert make({}) == RunConfig() and hash(make({"steps": 5})) == hash(make({"job.steps": 5}))


def test_a_file_has_sections_and_a_setting_has_one_key_of_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {dtype: bfloat16}\nlibrary:\n  loras: here\nengine:\nrun:\n  seed: 3\njob:\n  cfg_scale: 4\n  seed: 7\n"
    )
    made = make(
        {**read_file(path), **read_settings(["model.dtype=float16", "cfg=5", "job.steps=30", "engine.batch_size=2"])}
    )
    assert made == RunConfig(
        ModelSection(dtype="float16"),
        LibrarySection(loras="here"),
        EngineSection(batch_size=2),
        run=RunSection(seed=3),
        job=(("guidance_scale", 5.0), ("seed", 7), ("steps", 30)),
    )


@pytest.mark.parametrize("text", ["model: emoji", "model:\n  name: emoji"])
def test_a_model_may_be_all_that_is_said_of_it(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert read_file(path) == read_settings(["model=emoji"]) == read_settings(["model.name=emoji"])


@pytest.mark.parametrize(
    "name, key",
    [("dtype", "model.dtype"), ("lora_folder", "library.loras"), ("run_seed", "run.seed"), ("format", "output.format")],
)
def test_keys_of_versions_without_sections_are_told_by_their_new_name(tmp_path, name, key):
    path, (section, _, short) = tmp_path / "run.yaml", key.partition(".")
    path.write_text(f"{name}: x\n")
    with pytest.raises(RunConfigError, match=f"{name}': it is {key}, so write {section}: and below it {short}:"):
        read_file(path)
    with pytest.raises(RunConfigError, match=f"unknown key '{name}': it is {key}"):
        make(read_settings([f"{name}=x"]))
    assert set(FORMER.values()) <= KEYS.keys()


def test_fields_of_jobs_have_a_section_in_a_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("cfg_scale: 5\n")
    with pytest.raises(RunConfigError, match=r"it is job\.guidance_scale, so write job: and below it guidance_scale:"):
        read_file(path)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"sampler": "eular"}, "sampler = 'eular': expected one of .*did you mean 'euler'"),
        ({"step": 5}, r"unknown key 'step' \(did you mean 'steps'\?\); known: model.name, "),
        ({"batchsize": 5}, r"unknown key 'batchsize' \(did you mean 'engine.batch_size'\?\)"),
        ({"engine.batchsize": 5}, r"\(did you mean 'engine.batch_size'\?\)"),
        ({"job.model.dtype": "float32"}, "unknown key 'job.model.dtype'"),
        ({"cfg": 5, "cfg_scale": 5}, "both mean guidance_scale"),
        ({"prompt": "a"}, "unknown key 'prompt'"),
        ({5: 5}, "unknown key '5'"),
        pytest.param({"s" * 10**6: 5}, r"unknown key 's+\.\.\.; known", id="a long key"),
        ({"job": 5}, "unknown key 'job'"),
        ({"engine.batch_size": 10**40}, "engine.batch_size = 10+: expected a whole number from 1 to 65536"),
        ({"engine.batch_size": 1.5}, r"batch_size = 1\.5: expected a whole number"),
        ({"model.ema": "perhaps"}, "model.ema = 'perhaps': expected true or false"),
        ({"model.ema": 1}, "model.ema = 1: expected true or false"),
        ({"steps": [1, 2]}, r"steps = \[1, 2\]: expected a value of type int"),
        ({"seed": "1:30:00"}, "seed = '1:30:00': expected a value of type int"),
        ({"s_tmax": float("inf")}, "s_tmax = inf: expected a number from"),
        pytest.param({"model": ["x" * 10**6]}, r"model.name = \['x+\.\.\.: expected a path", id="a long value"),
        pytest.param({"steps": 10**5000}, "steps = a number of thousands of digits: expected", id="digits"),
        ({"steps": 0}, "steps = 0: expected a number from 1 to 1000"),
        ({"steps": float("nan")}, "steps = nan: expected"),
        ({"run.repeat": 0}, "run.repeat = 0: expected a whole number from 1 to 1000000"),
        ({"run.repeat": "two"}, "run.repeat = 'two': expected a whole number"),
        ({"run.host_batch": True}, "run.host_batch = True: expected a whole number"),
        ({"run.seed": -1}, "run.seed = -1: expected a whole number from 0 to "),
        ({"output.format": "gif"}, "output.format = 'gif': expected one of png, webp, jpeg"),
        ({"model.dtype": "int8"}, "model.dtype = 'int8': expected one of float32, "),
        ({"model": None}, "model.name = None: expected a path, org/name or emoji"),
        ({"model.variant": 16}, "model.variant = 16: expected text"),
    ],
)
def test_what_can_not_be_is_an_error_that_names_the_key(keys, message):
    with pytest.raises(RunConfigError, match=message):
        make(keys)


def test_texts_in_a_file_are_read_as_in_a_table(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {ema: yes, pickled: off, variant: no}\n"
        'job:\n  negative_prompt: on\n  steps: "20"\n  loras: 2024-01-01\n'
    )
    made = make(read_file(path))
    assert (made.model.ema, made.model.pickled, made.model.variant) == (True, False, "no")
    assert dict(made.job) == {"negative_prompt": "on", "steps": 20, "loras": "2024-01-01"}


def test_texts_of_the_run_are_taken_from_settings_as_they_stand():
    of_model = ["model.variant=010", "model=a: [#b", "model.vae=yes", "model.ema=on"]
    made = make(read_settings([*of_model, "library.wildcards=null", "engine.batch_size=2"]))
    assert made == RunConfig(
        ModelSection(variant="010", name="a: [#b", vae="yes", ema=True), engine=EngineSection(batch_size=2)
    )


def test_settings_are_read_as_yaml_reads_them_but_text_stays_text():
    assert read_settings(["steps=null", "guidance_scale=", "negative_prompt=null"]) == {
        "job.steps": None,
        "job.guidance_scale": None,
        "job.negative_prompt": "null",
    }
    assert read_settings(["sampler=null", "seed=7.0", "guidance_scale=1e1"]) == {
        "job.sampler": None,
        "job.seed": 7,
        "job.guidance_scale": 10.0,
    }
    assert read_settings(
        ["steps=5", "guidance_scale=2.5", "negative_prompt=1", "model.variant=", "negative_prompt=a=b"]
    ) == {"job.steps": 5, "job.guidance_scale": 2.5, "model.variant": None, "job.negative_prompt": "a=b"}
    # A1111's own count of clip skip begins at 1.
    skip = "clip_stop_at_last_layers"
    assert read_settings([f"{skip}=2"]) == {"job.clip_skip": 1} and read_settings([f"{skip}="]) == {
        "job.clip_skip": None
    }


@pytest.mark.parametrize(
    "setting, message",
    [
        ("steps", "expected KEY=VALUE"),
        ("run.repeat=[", "can't be read: line 1: not valid YAML"),
        ("run.repeat=08", "can't be read: line 1: '08' is one number or another"),
        ("steps=[", "expected a value of type int"),
        ("guidance_scale=much", "expected a value of type float"),
    ],
)
def test_a_setting_that_can_not_be_read_is_shown(setting, message):
    with pytest.raises(RunConfigError, match=rf"--set {re.escape(setting)}: .*{message}"):
        read_settings([setting])


@pytest.mark.parametrize(
    "text, message",
    [
        ("job: [", "can't be read as YAML"),
        ("- steps", "expected keys and values, found list"),
        ("", "expected keys and values, found NoneType"),
        pytest.param("steps: " + "[" * 2000, "line 1: nested more than 32 deep", id="brackets"),
        ("steps: &a 5\nseed: *a", "line 2: an alias"),
        ("job:\n  steps: 5\n  steps: 6", "line 3: the key 'steps' is there twice"),
        ("job:\n  cfg: 5\n  cfg_scale: 6", "both mean guidance_scale"),
        ("job: 5", "expected keys and values below job:, found int"),
        ("library: emoji", "expected keys and values below library:, found str"),
        ("modle: emoji", r"unknown section 'modle' \(did you mean 'model'\?\); known: model, library, engine"),
        ("job:\n  stpes: 5", r"unknown key 'job.stpes' \(did you mean 'steps'\?\)"),
        ("steps: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RunConfigError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_file(path)


def test_an_alias_bomb_is_refused_within_little_memory(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)))
    tracemalloc.start()
    try:
        with pytest.raises(RunConfigError, match=r"run\.yaml: .*line 2: an alias") as caught:
            make(read_file(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 and len(str(caught.value)) < 500
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunConfigError, match=r"gone\.yaml: there is no such file"):
        read_file(tmp_path / "gone.yaml")


ROOT = Path(__file__).parents[3]
# docs/extending.md takes the packages that its own test installs.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.stem != "extending")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_settings_and_files_in_the_docs_can_be_used(page, tmp_path):
    text = page.read_text("utf-8")
    for setting in re.findall(r"--set ([a-z][\w.]*=[^\s`]*)", text):
        assert make(read_settings([setting]))
    for number, example in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)):
        (tmp_path / f"{number}.yaml").write_text(example)
        assert make(read_file(tmp_path / f"{number}.yaml"))


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_that_come_with_sdjax_can_be_used(path):
    assert make(read_file(path))
