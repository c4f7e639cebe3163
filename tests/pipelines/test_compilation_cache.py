"""The folder of compiled programs: nobody else may write there."""

import jax
import pytest

from pipelines.compilation_cache import use_cache


@pytest.fixture
def named(tmp_path, monkeypatch):
    """The folder, and what JAX was told of it."""
    folder = tmp_path / "deeper" / "compiled"
    told = {}
    monkeypatch.setenv("SDJAX_CACHE", str(folder))
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return folder, told


def test_a_folder_of_ones_own_is_made_and_used(named):
    folder, told = named
    use_cache()
    assert told == {"jax_compilation_cache_dir": str(folder)} and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_in_which_others_can_write_is_not_used(named, mode):
    folder, told = named
    folder.mkdir(parents=True)
    folder.chmod(mode)
    use_cache()
    assert told == {}


def test_a_folder_that_can_not_be_made_is_not_used(named):
    folder, told = named
    folder.parent.write_text("in the way")
    use_cache()
    assert told == {}


def test_a_folder_of_somebody_else_is_not_used(named, monkeypatch):
    _, told = named
    monkeypatch.setattr("os.getuid", lambda: 54321)
    use_cache()
    assert told == {}
