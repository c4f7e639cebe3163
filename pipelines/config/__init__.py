"""The configuration of a run: sections of keys, from a YAML file and from `--set KEY=VALUE`.

`sections` defines the keys, `reading` makes a `RunConfig` of files and settings, `recorded` is the form in which
summary.json keeps it, `table` lists all keys for docs/configuration.md.
"""

from pipelines.config.keys import RunConfigError
from pipelines.config.sections import RunConfig

__all__ = ["RunConfig", "RunConfigError"]
