"""JAX's persistent cache of compiled programs, where later runs and other workers find them."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """`$SDJAX_CACHE`, or `sdjax/compiled` in the user's cache folder."""
    named = os.environ.get("SDJAX_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "sdjax" / "compiled"


def use_cache() -> None:
    """Lets this process read and write the cache.

    Only the user may: whoever can write there can make others run code. A folder that can't be made, or that
    belongs to somebody else, is not used.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return
    if status.st_uid == os.getuid() and not status.st_mode & 0o022:
        jax.config.update("jax_compilation_cache_dir", str(folder))
