"""Each of diffusers' scheduler classes, by its recorded default config: as docs/samplers.md says.

Recorded in tests/golden/scheduler_classes.json from diffusers 0.42.1; `make parity` compares it with the installed one.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sdjax.diffusion.samplers import own_sampler
from sdjax.diffusion.scheduler_classes import OTHER_SOLVERS, UNSUPPORTED
from sdjax.diffusion.scheduler_config import SchedulerConfig
from sdjax.models import ConfigError

ROOT = Path(__file__).parents[2]
DEFAULTS = json.loads((ROOT / "tests/golden/scheduler_classes.json").read_text("utf-8"))
PAGE = (ROOT / "docs/samplers.md").read_text("utf-8").partition("## A checkpoint's own scheduler")[2]
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE))
EVERY_ROW = pytest.mark.parametrize("name", ROWS)


def test_the_page_has_every_class():
    assert ROWS.keys() >= DEFAULTS.keys() and len(DEFAULTS) == 49
    assert list(ROWS) == sorted(ROWS)


@EVERY_ROW
def test_a_class_at_its_default_config_does_what_the_page_says(name):
    data = DEFAULTS.get(name, {"_class_name": name})
    word, _, reason = ROWS[name].partition(": ")
    if word == "refused":
        with pytest.raises(ConfigError) as raised:
            SchedulerConfig.from_json(data, "x/scheduler_config.json")
        assert str(raised.value).startswith(f"x/scheduler_config.json: {name} is not supported: {reason}. ")
        assert reason == UNSUPPORTED[name]
        return
    sampler = own_sampler(name, SchedulerConfig.from_json(data))
    if word == "name a sampler":
        assert sampler is None and reason == f"it is {OTHER_SOLVERS[name].what}"
    else:
        assert word == "drawn as there" and sampler is not None


def test_a_class_for_many_timesteps_at_once_and_one_for_jax_are_the_plain_ones():
    for name, same in (
        ("DDIMParallelScheduler", "DDIMScheduler"),
        ("DDPMParallelScheduler", "DDPMScheduler"),
        ("FlaxPNDMScheduler", "PNDMScheduler"),
    ):
        config = SchedulerConfig.from_json({"_class_name": name})
        assert config == SchedulerConfig.from_json({"_class_name": same})
        assert own_sampler(name, config) == own_sampler(same, config)


def test_what_another_solver_says_of_the_network_is_kept():
    data = {**DEFAULTS["SASolverScheduler"], "beta_end": 0.012, "prediction_type": "v_prediction"}
    config = SchedulerConfig.from_json(data)
    assert (config.beta_end, config.prediction_type) == (0.012, "v_prediction")
    assert SchedulerConfig.from_json(DEFAULTS["UnCLIPScheduler"]).beta_schedule == "squaredcos_cap_v2"
    with pytest.raises(ConfigError, match="unknown key 'corrector_order'"):
        SchedulerConfig.from_json({"_class_name": "DDIMScheduler", "corrector_order": 2})


def test_a_model_of_few_timesteps_loads_whatever_consistency_models_are_distilled_for():
    config = SchedulerConfig.from_json({"_class_name": "DDPMScheduler", "num_train_timesteps": 25})
    assert config.num_train_timesteps == 25
    said = {"_class_name": "LCMScheduler", "num_train_timesteps": 25, "original_inference_steps": 50}
    with pytest.raises(ConfigError, match="original_inference_steps = 50 is more than num_train_timesteps = 25"):
        SchedulerConfig.from_json(said)


@pytest.mark.parametrize("value", [0.5, 0.001, 1000.0])
def test_any_greatest_value_of_thresholding_that_diffusers_takes_is_taken(value):
    config = SchedulerConfig.from_json({"thresholding": True, "sample_max_value": value})
    assert config.sample_max_value == value


def test_a_greatest_value_without_thresholding_says_nothing():
    assert dataclasses.replace(SchedulerConfig(), sample_max_value=1e6).sample_max_value == 1e6
    with pytest.raises(ConfigError, match=r"sample_max_value = 1000000.0: expected a number from 0.001 to 1000.0"):
        SchedulerConfig.from_json({"thresholding": True, "sample_max_value": 1e6})
