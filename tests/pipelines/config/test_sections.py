"""Sections of the configuration."""

import dataclasses
import pickle

import pytest

from pipelines.config import RunConfig, RunConfigError
from pipelines.config.sections import KEYS, SECTIONS, EngineSection, ModelSection, paths, replaced, value_of


def test_a_section_with_an_impossible_value_can_not_be_made():
    with pytest.raises(RunConfigError, match=r"engine\.batch_size = 0: expected a whole number from 1 to 65536"):
        EngineSection(batch_size=0)
    with pytest.raises(RunConfigError, match=r"model\.vae_dtype = 'int8': expected one of float32"):
        dataclasses.replace(ModelSection(), vae_dtype="int8")


def test_every_section_is_a_member_of_its_name_and_every_default_is_possible():
    config = RunConfig()
    assert SECTIONS.keys() == {"model", "library", "engine", "output", "run"}
    assert all(section.section == name for name, section in SECTIONS.items())
    assert {key: value_of(config, key) for key in KEYS} == {key: of.default for key, of in KEYS.items()}


def test_a_name_within_a_section_is_no_other_section_has():
    assert len({key.partition(".")[2] for key in KEYS}) == len(KEYS)


def test_a_configuration_travels_to_workers_and_is_the_same_there():
    config = replaced(RunConfig(), {"model.dtype": "bfloat16", "run.shards": 3})
    assert pickle.loads(pickle.dumps(config)) == config and value_of(config, "run.shards") == 3


def test_paths_are_what_is_named_outside_of_the_package():
    assert paths(RunConfig()) == {}
    named = {"model.name": "org/name", "model.vae": "/x", "library.loras": "emoji", "library.controlnets": "emoji"}
    assert paths(replaced(RunConfig(), named)) == {
        "model.name": "org/name",
        "model.vae": "/x",
        "library.loras": "emoji",  # what is bundled holds no LoRAs
    }
