import re
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
        ({"steps": 0}, "steps = 0: expected a number from 1 to 1000"),
        ({"steps": float("nan")}, "steps = nan: expected"),
        ({"repeat": 0}, "repeat = 0: expected a whole number from 1 on"),
        ({"repeat": "two"}, "repeat = 'two': expected a whole number"),
        ({"host_batch": True}, "host_batch = True: expected a whole number"),
        ({"run_seed": -1}, "run_seed = -1: expected a whole number from 0 on"),
        ({"format": "gif"}, "format = 'gif': expected one of png, webp, jpeg"),
        ({"dtype": "int8"}, "dtype = 'int8': expected one of float32, "),
        ({"model": None}, "model = None: expected text"),
        ({"variant": 16}, "variant = 16: expected text"),
    ],
)
def test_what_can_not_be_is_an_error_that_names_the_key(keys, message):
    with pytest.raises(RunConfigError, match=message):
        make(keys)


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
        ("repeat=[", "can't be read"),
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
        ("steps: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RunConfigError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_file(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunConfigError, match=r"gone\.yaml: there is no such file"):
        read_file(tmp_path / "gone.yaml")


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_that_come_with_sdjax_can_be_used(path):
    assert make(read_file(path))
