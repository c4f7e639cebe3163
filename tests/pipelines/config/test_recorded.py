"""The configuration in summary.json: what engine and model are made from comes back, also of an earlier version's."""

import json

import pytest

from pipelines.config import RunConfig, RunConfigError
from pipelines.config.recorded import for_engine, from_record, to_record, with_names
from pipelines.config.settings import make

VALUES = {
    "model.name": "here", "model.vae": "there", "model.dtype": "bfloat16", "library.loras": "loras",
    "library.wildcards": "words", "engine.batch_size": 2, "output.format": "webp", "run.seed": 3, "steps": 5,
}  # fmt: skip
# As version 0.2.0 wrote it, in part.
OF_0_2 = {
    "model": "here", "vae": "there", "dtype": "bfloat16", "lora_folder": "loras", "wildcards": "words",
    "batch_size": 2, "format": "webp", "run_seed": 3, "job": {"steps": 5}, "sweeps": [], "sweep": "product",
}  # fmt: skip


def test_what_an_engine_is_made_from_comes_back_of_a_record():
    config = make(VALUES, {"sampler": ["euler", "ddim"]})
    recorded = json.loads(json.dumps(to_record(config)))
    assert recorded["job"] == {"steps": 5} and recorded["output"]["format"] == "webp"
    found = from_record(recorded)
    assert found == for_engine(config) and found.model == config.model and found.engine == config.engine
    # No image is made of wildcards: its record has the prompt that they gave.
    assert found.library.loras == "loras" and found.library.wildcards is None
    assert found.job == () and found.run == RunConfig().run


def test_a_record_of_a_version_without_sections_is_read():
    assert from_record(OF_0_2) == for_engine(make(VALUES))


@pytest.mark.parametrize("recorded", [OF_0_2, to_record(make(VALUES))])
def test_keys_that_other_versions_have_or_lack_are_passed_over(recorded):
    known = from_record({**recorded, "later": 3})
    assert known == from_record(recorded)
    lacking = {key: value for key, value in recorded.items() if key not in ("vae", "dtype")}
    if recorded is OF_0_2:
        assert from_record(lacking) == for_engine(make({**VALUES, "model.vae": None, "model.dtype": "float32"}))


@pytest.mark.parametrize(
    "recorded, error",
    [
        ({**OF_0_2, "batch_size": "2"}, RunConfigError),
        ({**to_record(RunConfig()), "engine": {"vae_tile": -1}}, RunConfigError),
        ({"model": {}}, LookupError),
        ({"model": 3, "library": 3, "engine": 3}, AttributeError),
        ({}, LookupError),
        ([], TypeError),
    ],
)
def test_what_is_no_record_is_an_error(recorded, error):
    with pytest.raises(error):
        from_record(recorded)


def test_what_metadata_state_of_engine_and_model_goes_by_its_name_alone():
    config = with_names(RunConfig(), {"batch_size": 7, "dtype": "float16", "lora_mode": "batched", "vae_tile": 0})
    assert (config.engine.batch_size, config.model.dtype) == (7, "float16")
