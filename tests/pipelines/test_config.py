import re
import tracemalloc
from pathlib import Path

import pytest

from pipelines.config import RunConfig, RunConfigError, make, read_file, read_settings


def test_keys_of_the_run_and_of_jobs_stand_together():
    made = make({"model": "here", "repeat": 2, "steps": 5, "sampler": None, "guidance_scale": 3})
    assert made == RunConfig(model="here", repeat=2, job=(("guidance_scale", 3), ("steps", 5)))
    assert make({}) == RunConfig()


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"sampler": "eular"}, "sampler = 'eular': expected one of .*did you mean 'euler'"),
        ({"step": 5}, r"unknown key 'step' \(did you mean 'steps'\?\); known: model, "),
        ({"batchsize": 5}, r"unknown key 'batchsize' \(did you mean 'batch_size'\?\)"),
        ({"prompt": "a"}, "unknown key 'prompt'"),
        ({5: 5}, "unknown key 5"),
        pytest.param({"s" * 10**6: 5}, r"unknown key 's+\.\.\.; known", id="a long key"),
        ({"job": 5}, "unknown key 'job'"),
        ({"batch_size": 10**40}, "batch_size = 10+: expected a whole number from 1 to 65536"),
        ({"batch_size": 1.5}, r"batch_size = 1\.5: expected a whole number"),
        ({"ema": "perhaps"}, "ema = 'perhaps': expected true or false"),
        ({"ema": 1}, "ema = 1: expected true or false"),
        ({"steps": [1, 2]}, r"steps = \[1, 2\]: expected a value of type int"),
        ({"seed": "1:30:00"}, "seed = '1:30:00': expected a value of type int"),
        ({"s_tmax": float("inf")}, "s_tmax = inf: expected a number from"),
        pytest.param({"model": ["x" * 10**6]}, r"model = \['x+\.\.\.: expected text", id="a long value"),
        pytest.param({"steps": 10**5000}, "steps = a number of thousands of digits: expected", id="digits"),
        ({"steps": 0}, "steps = 0: expected a number from 1 to 1000"),
        ({"steps": float("nan")}, "steps = nan: expected"),
        ({"repeat": 0}, "repeat = 0: expected a whole number from 1 to 1000000"),
        ({"repeat": "two"}, "repeat = 'two': expected a whole number"),
        ({"host_batch": True}, "host_batch = True: expected a whole number"),
        ({"run_seed": -1}, "run_seed = -1: expected a whole number from 0 to "),
        ({"format": "gif"}, "format = 'gif': expected one of png, webp, jpeg"),
        ({"dtype": "int8"}, "dtype = 'int8': expected one of float32, "),
        ({"model": None}, "model = None: expected text"),
        ({"variant": 16}, "variant = 16: expected text"),
    ],
)
def test_what_can_not_be_is_an_error_that_names_the_key(keys, message):
    with pytest.raises(RunConfigError, match=message):
        make(keys)


def test_texts_in_a_file_are_read_as_in_a_table(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text('ema: yes\npickled: off\nvariant: no\nnegative_prompt: on\nsteps: "20"\nloras: 2024-01-01\n')
    made = make(read_file(path))
    assert (made.ema, made.pickled, made.variant) == (True, False, "no")
    assert dict(made.job) == {"negative_prompt": "on", "steps": 20, "loras": "2024-01-01"}


def test_texts_of_the_run_are_taken_from_settings_as_they_stand():
    settings = ["variant=010", "model=a: [#b", "vae=yes", "wildcards=null", "ema=on", "batch_size=2"]
    assert make(read_settings(settings)) == RunConfig(variant="010", model="a: [#b", vae="yes", ema=True, batch_size=2)


def test_settings_are_read_as_yaml_reads_them_but_text_stays_text():
    assert read_settings(["steps=null", "guidance_scale=", "negative_prompt=null"]) == {
        "steps": None,
        "guidance_scale": None,
        "negative_prompt": "null",
    }
    assert read_settings(["sampler=null", "seed=7.0", "guidance_scale=1e1"]) == {
        "sampler": None,
        "seed": 7,
        "guidance_scale": 10.0,
    }
    assert read_settings(["steps=5", "guidance_scale=2.5", "negative_prompt=1", "variant=", "negative_prompt=a=b"]) == {
        "steps": 5,
        "guidance_scale": 2.5,
        "variant": None,
        "negative_prompt": "a=b",
    }


@pytest.mark.parametrize(
    "setting, message",
    [
        ("steps", "expected KEY=VALUE"),
        ("repeat=[", "can't be read: line 1: not valid YAML"),
        ("repeat=08", "can't be read: line 1: '08' is one number or another"),
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
        ("steps: [", "can't be read as YAML"),
        ("- steps", "expected keys and values, found list"),
        ("", "expected keys and values, found NoneType"),
        pytest.param("steps: " + "[" * 2000, "line 1: nested more than 32 deep", id="brackets"),
        ("steps: &a 5\nseed: *a", "line 2: an alias"),
        ("steps: 5\nsteps: 6", "line 2: the key 'steps' is there twice"),
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


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_that_come_with_sdjax_can_be_used(path):
    assert make(read_file(path))
