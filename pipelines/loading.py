"""The model, the library and the engine of a run, loaded as its configuration says, once in each worker process."""

import dataclasses
from collections.abc import Callable

from pipelines import compilation_cache
from pipelines.config import RunConfig
from pipelines.config.sections import finds_batch_size
from pipelines.sources import input_images
from sdjax.engine.engine import Engine
from sdjax.engine.fingerprint import EngineIdentity
from sdjax.engine.passes import Bucket
from sdjax.engine.planner import Planner, planner_for
from sdjax.library.classifier import load_classifier, read_classifier
from sdjax.library.library import Library
from sdjax.library.opened import OpenLibrary
from sdjax.model import Model, load


def load_model(config: RunConfig, *, weights: bool = True) -> Model:
    """The model; errors are those of `sdjax.load`, whose arguments the keys are named after."""
    return load(weights=weights, **dataclasses.asdict(config.model))


def library_of(config: RunConfig) -> Library:
    """Where the files are that jobs and prompts name; the keys are named after its fields."""
    places = dataclasses.asdict(config.library)
    del places["wildcards"]  # which the prompt files name, and the library never sees
    return Library(**places, pickled=config.model.pickled)


def make_engine(
    config: RunConfig,
    on_compile: Callable[[Bucket], None] = lambda bucket: None,
    read: Callable[[str], bytes] | None = None,
    library: OpenLibrary | None = None,
) -> Engine:
    """An engine with all of it; errors are those of `sdjax.load` and `Engine`.

    Args:
      config: of which the sections `model`, `library` and `engine` count; one whose batch size is to be found out makes
        batches of one image.
      on_compile: called with each bucket whose program is about to be compiled.
      read: gives the bytes of an input image by its path; by itself as `sources.input_images` does.
      library: the library of the configuration if it is open already, for the same model.
    """
    compilation_cache.use_cache()
    classifier = config.library.classifier
    settings = dataclasses.asdict(config.engine)
    if finds_batch_size(config):
        settings["batch_size"] = 1
    return Engine(
        load_model(config),
        classifier=None if classifier is None else load_classifier(classifier),
        library=library or library_of(config),
        read_image=read or input_images.read,
        on_compile=on_compile,
        **settings,
    )


def make_planner(config: RunConfig, model: Model, library: OpenLibrary, identity: EngineIdentity) -> Planner:
    """The planner of an engine that was made as the configuration says, maybe in another process.

    Args:
      config: as of `make_engine`.
      model: its model, without weights.
      library: its library, opened for this model.
      identity: that of the engine.
    """
    classifier = config.library.classifier
    return planner_for(
        model,
        identity,
        library,
        labels=None if classifier is None else read_classifier(classifier).labels,
        read_image=input_images.read,
        lora_mode=config.engine.lora_mode,
        vae_tile=config.engine.vae_tile,
    )
