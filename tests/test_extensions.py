"""What other packages add by entry points: when it is imported, what is said of it, and what can be wrong with it."""

import sys
from pathlib import Path

import pytest

from sdjax import extensions
from sdjax.diffusion.samplers import SAMPLERS, Sampler, sampler_row
from sdjax.engine.planner import Planner
from sdjax.jobs.job import Job, JobError

GROUP = extensions.SAMPLERS
ROW = "from sdjax.diffusion.samplers import SAMPLERS\nROW = SAMPLERS['heun']\n"


class Packages:
    """Installed packages, as pip leaves them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def install(self, distribution: str, name: str, source: str, version: str = "1.0") -> None:
        """A distribution whose only module adds its `ROW` under a name."""
        module = distribution.replace("-", "_")
        (self._folder / f"{module}.py").write_text(source, "utf-8")
        metadata = self._folder / f"{module}-{version}.dist-info"
        metadata.mkdir(exist_ok=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", "utf-8"
        )
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:ROW\n", "utf-8")
        forget()


def forget() -> None:
    """As if the process had just begun."""
    for cached in (extensions._entry_points, extensions.find, extensions._loaded):
        cached.cache_clear()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Packages(tmp_path)
    forget()
    for name in set(sys.modules) - before:
        if name.startswith("added"):
            del sys.modules[name]


def test_a_package_is_imported_when_a_run_names_it_and_not_before(packages):
    packages.install("added-one", "mine", ROW)
    assert extensions.names(GROUP) == ("mine",) and "added_one" not in sys.modules
    assert Job(prompt="a", sampler="mine").sampler == "mine" and "added_one" not in sys.modules
    assert sampler_row("mine") == SAMPLERS["heun"] and "added_one" in sys.modules


def test_another_version_or_another_source_is_another_extension(packages):
    packages.install("added-one", "mine", ROW)
    first = extensions.find(GROUP, "mine")
    packages.install("added-one", "mine", f"{ROW}# another line\n")
    second = extensions.find(GROUP, "mine")
    assert str(first).startswith("sdjax.samplers mine: added-one 1.0 sha256 ") and len(str(first).split()[-1]) == 64
    assert first is not None and second is not None and first.digest != second.digest


def test_ids_and_metadata_have_the_package(packages, tiny):
    packages.install("added-one", "mine", ROW)
    from sdjax.engine.engine import Engine

    planner: Planner = Engine(tiny).planner
    own, added = (planner.plan(Job(prompt="a", seed=1, sampler=name)) for name in ("heun", "mine"))
    assert "extensions" not in own.metadata
    assert added.metadata["extensions"] == str(extensions.find(GROUP, "mine"))
    packages.install("added-one", "mine", f"{ROW}# another line\n")
    assert planner.plan(Job(prompt="a", seed=1, sampler="mine")).id not in (own.id, added.id)


def test_a_name_of_sdjax_is_its_own(packages):
    packages.install("added-one", "euler", "raise RuntimeError\n")
    assert sampler_row("euler") is SAMPLERS["euler"]
    assert extensions.added_by("euler", SAMPLERS, GROUP) is None


def test_two_packages_that_add_one_name_are_both_named(packages):
    packages.install("added-one", "mine", ROW)
    packages.install("added-two", "mine", ROW)
    with pytest.raises(extensions.ExtensionError, match=r"added-(one|two) 1.0 and added-(one|two) 1.0: uninstall"):
        sampler_row("mine")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import nothing_of_this_name\n", "can't be imported: ModuleNotFoundError"),
        ("ROW = 'heun'\n", "is of type str; expected Sampler"),
        ("", "can't be imported: AttributeError"),
    ],
)
def test_a_package_that_is_none_is_named(packages, source, problem):
    packages.install("added-one", "mine", source)
    with pytest.raises(extensions.ExtensionError, match=rf"sdjax.samplers mine: added-one 1.0 .*: it {problem}"):
        extensions.load(GROUP, "mine", Sampler)


def test_a_package_without_its_source_is_named(packages, tmp_path):
    packages.install("added-one", "mine", ROW)
    (tmp_path / "added_one.py").unlink()
    with pytest.raises(extensions.ExtensionError, match="there is no module added_one with a file; reinstall"):
        sampler_row("mine")


def test_errors_about_names_list_what_packages_add(packages):
    packages.install("added-one", "mine", ROW)
    with pytest.raises(JobError, match=r"expected one of .*uni_pc_bh2, mine .did you mean 'mine'"):
        Job(prompt="a", sampler="mine1")
    with pytest.raises(KeyError):
        sampler_row("mine1")
