"""The configuration and what is loaded by it are at one."""

import inspect

import sdjax
from pipelines.config.sections import EngineSection, ModelSection
from pipelines.config.settings import make
from pipelines.loading import load_model, make_engine


def test_keys_of_model_and_engine_are_arguments_of_the_library_with_the_same_defaults():
    for section, function in ((ModelSection, sdjax.load), (EngineSection, sdjax.Engine)):
        arguments = inspect.signature(function).parameters
        for name, key in section.keys().items():
            default = arguments[name].default
            assert name in arguments and (default is inspect.Parameter.empty or default == key.default), name


def test_an_engine_is_made_as_its_configuration_says(tiny_folder):
    values = {"model.name": str(tiny_folder), "engine.batch_size": 2, "engine.vae_tile": 64, "model.dtype": "bfloat16"}
    engine = make_engine(make(values))
    assert (engine.batch_size, engine.model.dtype) == (2, "bfloat16")


def test_the_model_is_that_of_the_configuration_with_or_without_weights(tiny_folder):
    config = make({"model": str(tiny_folder)})
    assert load_model(config).digest == sdjax.load(tiny_folder).digest
    assert load_model(config, weights=False).unet == load_model(config).unet
