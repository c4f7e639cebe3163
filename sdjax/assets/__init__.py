"""The embedded model and what was trained for it, and CLIP's vocabulary."""

import importlib.resources
from pathlib import Path

# Models that come with the package, by name.
BUNDLED = ("emoji",)


def bundled(name: str | Path, part: str = "") -> Path | None:
    """The folder of a bundled model, or of a part of it: None if `name` is no such model's."""
    if str(name) not in BUNDLED:
        return None
    return Path(str(importlib.resources.files(__name__))).joinpath(str(name), part)
