"""The model, the library and the engine of a run, loaded as its configuration says, once in each worker process."""

import dataclasses
from collections.abc import Callable

from pipelines import compilation_cache
from pipelines.config import RunConfig
from pipelines.sources import input_images
from sdjax.adapters.library import Library
from sdjax.engine.engine import Engine
from sdjax.engine.program import Bucket
from sdjax.library.classifier import load_classifier
from sdjax.library.picture_library import Pictures
from sdjax.model import Model, load


def load_model(config: RunConfig, *, weights: bool = True) -> Model:
    """The model; errors are those of `sdjax.load`, whose arguments the keys are named after."""
    return load(weights=weights, **dataclasses.asdict(config.model))


def library_of(config: RunConfig) -> Library:
    """The folders of adapters."""
    library = config.library
    return Library(library.loras, library.hypernetworks, library.embeddings, config.model.pickled)


def pictures_of(config: RunConfig, read: Callable[[str], bytes] | None = None) -> Pictures:
    """How input images are read (or else as `sources.input_images` does), and what images are conditioned with."""
    return Pictures(
        read=read or input_images.read,
        controlnet_folder=config.library.controlnets,
        depth_model=config.library.depth_model,
        upscaler_folder=config.library.upscalers,
        pickled=config.model.pickled,
    )


def make_engine(
    config: RunConfig,
    on_compile: Callable[[Bucket], None] = lambda bucket: None,
    read: Callable[[str], bytes] | None = None,
) -> Engine:
    """An engine with all of it; errors are those of `sdjax.load`, `load_classifier` and `Engine`.

    Args:
      config: of which the sections `model`, `library` and `engine` count.
      on_compile: called with each bucket whose program is about to be compiled.
      read: gives the bytes of an input image by its path.
    """
    compilation_cache.use_cache()
    classifier = config.library.classifier
    return Engine(
        load_model(config),
        classifier=load_classifier(classifier) if classifier else None,
        library=library_of(config),
        pictures=pictures_of(config, read),
        on_compile=on_compile,
        **dataclasses.asdict(config.engine),
    )
