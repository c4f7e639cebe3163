"""Image data sets made with Stable Diffusion in JAX."""

from sdjax.adapters.files import AdapterError
from sdjax.api import generate
from sdjax.checkpoints.tensors import CheckpointError
from sdjax.engine.engine import Engine, Result
from sdjax.jobs.job import Job, JobError
from sdjax.library.classifier import Classifier, label_named, load_classifier
from sdjax.library.library import Library
from sdjax.model import Model, load
from sdjax.models import ConfigError
from sdjax.version import __version__

__all__ = [
    "AdapterError",
    "CheckpointError",
    "Classifier",
    "ConfigError",
    "Engine",
    "Job",
    "JobError",
    "Library",
    "Model",
    "Result",
    "__version__",
    "generate",
    "label_named",
    "load",
    "load_classifier",
]
