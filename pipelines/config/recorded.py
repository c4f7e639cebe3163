"""A configuration as summary.json keeps it."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.config.sections import KEYS, SECTIONS, RunConfig, replaced
from pipelines.config.settings import BY_NAME, FORMER

# The sections that engine and model are made from.
_OF_ENGINE = ("model", "library", "engine")


def to_record(config: RunConfig) -> dict[str, Any]:
    """The sections, for JSON."""
    return {**dataclasses.asdict(config), "job": dict(config.job)}


def for_engine(config: RunConfig) -> RunConfig:
    """Of a configuration what engine and model are made from; the rest is at its default."""
    return RunConfig(config.model, dataclasses.replace(config.library, wildcards=None), config.engine)


def with_names(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The same with what metadata state of engine and model, by names without sections (`batch_size`, `dtype`, ...)."""
    return replaced(config, {BY_NAME[name]: value for name, value in values.items()})


def from_record(recorded: Mapping[str, Any]) -> RunConfig:
    """The same of a record; what it leaves out, because its version did not know it, is at its default.

    Raises:
      RunConfigError: for a value that its key doesn't take.
      LookupError, TypeError, AttributeError: for what is no record.
    """
    is_flat = isinstance(recorded["model"], str)
    values = dict(_of_flat(recorded) if is_flat else _of_sections(recorded))
    return for_engine(replaced(RunConfig(), {key: values[key] for key in KEYS if key in values}))


def _of_sections(recorded: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for section in _OF_ENGINE:
        for name in SECTIONS[section].keys() & recorded[section].keys():
            yield f"{section}.{name}", recorded[section][name]


def _of_flat(recorded: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Of a record without sections, as versions up to 0.3 wrote it."""
    for name, value in recorded.items():
        key = FORMER.get(name) or BY_NAME.get(name, "")
        if key.partition(".")[0] in _OF_ENGINE:
            yield key, value
