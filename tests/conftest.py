"""Strict modes for all tests, four devices on one CPU, compiled programs and the small models that tests share."""

import os
import pkgutil

# Before JAX starts. What a run gives must not depend on how many devices it uses. And as tests run side by side, to
# compile a program in parts, in parallel, costs them more.
_FLAGS = "--xla_force_host_platform_device_count=4 --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Threads of torch's in each of two processes wait for each other: its part of the comparison took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (named in the next line)

# All but `sdjax.jobs`, which checks what users give it itself, and says so in words of its own.
_CHECKED = (
    "adapters", "api", "checkpoints", "engine", "families", "images", "jobs.input_images", "library",
    "model", "models", "storage", "text", "training", "upscaling",
)  # fmt: skip
# Functions of single floats, called by the million, of which a check takes ten times as long as the function.
_UNCHECKED = {"sdjax.diffusion.elementary"}
_DIFFUSION = {f"sdjax.diffusion.{module.name}" for module in pkgutil.iter_modules(["sdjax/diffusion"])}
install_import_hook(
    [*(f"sdjax.{part}" for part in _CHECKED), *sorted(_DIFFUSION - _UNCHECKED)], "tests.typechecker.checked"
)

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

import sdjax
from pipelines import compilation_cache
from tests import toys

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The same cases in every run, so that a change is judged by what it changes. `make fuzz` searches for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


# Files of which each takes a minute: first, so that two processes end at about the same time.
_LONG = (
    "engine/test_engine", "pipelines/test_images", "models/test_images", "engine/test_images",
    "test_adapted_images", "test_bits", "test_conditioned_images", "test_classifier", "test_decoding",
    "test_guided_images", "upscaling/test_diffusion", "test_extending", "test_cli", "test_kill", "test_signals",
    "test_fuzz", "test_timestep_spacing", "test_accelerations",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files."""

    def place(item: pytest.Item) -> int:
        file = str(item.path.with_suffix(""))
        return next((place for place, name in enumerate(_LONG) if file.endswith("/" + name)), len(_LONG))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all processes of these tests find each other's compiled programs: compiling is most of what tests do.

    `SDJAX_TEST_CACHE` names a folder that outlives a run, which `make test` and `make parity` share.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"
    if named := os.environ.get("SDJAX_TEST_CACHE"):
        folder = Path(named)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDJAX_CACHE", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        compilation_cache.use_cache()
        yield folder


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the structure of SD1, a thousandth of its size, with random weights."""
    return toys.write_toy(tmp_path_factory.mktemp("sd1"), toys.SD1)


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for SD2."""
    return toys.write_toy(tmp_path_factory.mktemp("sd2"), toys.SD2)


@pytest.fixture(scope="session")
def sd1(sd1_folder: Path) -> sdjax.Model:
    """The toy of SD1, loaded."""
    return sdjax.load(sd1_folder)


@pytest.fixture(scope="session")
def sd2(sd2_folder: Path) -> sdjax.Model:
    """The toy of SD2, loaded."""
    return sdjax.load(sd2_folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is as small as can be."""
    return toys.write_toy(tmp_path_factory.mktemp("tiny"), toys.TINY)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> sdjax.Model:
    """The same, loaded."""
    return sdjax.load(tiny_folder)


@pytest.fixture
def shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes folders that can't be listed, in the present one, to which anybody may write."""
    made: list[Path] = []
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # what is above it is for root alone

    def shut(name: str) -> None:
        made.append(tmp_path / name)
        made[-1].mkdir(parents=True)
        made[-1].chmod(0)

    yield shut
    for folder in made:
        folder.chmod(0o755)
