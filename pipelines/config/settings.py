"""Files and settings -> keys and values -> a configuration.

Between the two, keys are written in one way: `model.dtype`, and `job.steps` for a field of all jobs. A `--set` may
leave out `job.`; a file has the sections as mappings.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.keys import TRUTH, RunConfigError
from pipelines.config.sections import KEYS, SECTIONS, RunConfig, replaced
from sdjax.checkpoints.plain_yaml import PlainYamlError, parse_plain_yaml, read_plain_yaml
from sdjax.jobs.job import FIELDS, JobError
from sdjax.jobs.text_values import (
    field_from_text,
    field_named,
    truth_from_text,
    unknown_fields,
    with_fields_named,
)
from sdjax.messages import near_match, printable, quoted

JOB = "job"
# What a section is about: `model: emoji` in a file, `--set model=emoji`.
_SHORT = {"model": "model.name"}
# Keys of versions in which there were no sections, where they had another name.
FORMER: Mapping[str, str] = {
    "model": "model.name",
    "model_config": "model.config",
    "lora_folder": "library.loras",
    "hypernetwork_folder": "library.hypernetworks",
    "embedding_folder": "library.embeddings",
    "controlnet_folder": "library.controlnets",
    "upscaler_folder": "library.upscalers",
    "run_seed": "run.seed",
}
# The keys by what they are called within their sections; no two sections have the same.
BY_NAME: Mapping[str, str] = {key.partition(".")[2]: key for key in KEYS}
# A prompt belongs into the prompt file.
_FIELDS = tuple(name for name in FIELDS if name != "prompt")
# Of a setting, in errors.
_SHOWN_LETTERS = 200


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, whose values are as `parse_plain_yaml` reads them; raises `RunConfigError`."""
    try:
        data = read_plain_yaml(path)
    except FileNotFoundError:
        raise RunConfigError(f"{path}: there is no such file") from None
    except (OSError, PlainYamlError) as error:
        raise RunConfigError(f"{path}: can't be read as YAML: {error}") from error
    try:
        return dict(_pairs(data))
    except (RunConfigError, JobError) as error:
        raise RunConfigError(f"{path}: {error}") from error


def _pairs(data: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of a file's sections."""
    for section, values in _mapping(data, "keys and values").items():
        if section in _SHORT and isinstance(values, str):
            yield _SHORT[section], values
            continue
        if section not in (*SECTIONS, JOB):
            raise RunConfigError(_unknown_section(section))
        named = _mapping({} if values is None else values, f"keys and values below {section}:")
        for name, value in (with_fields_named(named) if section == JOB else named).items():
            yield _known(f"{section}.{name}"), value


def _mapping(data: Any, expected: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise RunConfigError(f"expected {expected}, found {type(data).__name__}")
    return data


def read_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts; nothing or "null" as a value takes back what a config file says. Raises `RunConfigError`.

    Values of jobs are read as in a table of prompts, texts of the run are taken as they stand, its numbers as in YAML.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RunConfigError(f"--set {_cut(setting)}: expected KEY=VALUE")
        try:
            found |= _setting(name.strip(), text)
        except (JobError, PlainYamlError) as error:
            raise RunConfigError(f"--set {_cut(setting)}: the value can't be read: {error}") from error
    return found


def _setting(name: str, text: str) -> dict[str, Any]:
    is_null, field = text.strip() in ("", "null"), _field(name)
    if field is not None:
        is_null &= field_named(field) != "negative_prompt"
        [(key, value)] = with_fields_named({field: None if is_null else text}).items()
        return {f"{JOB}.{key}": _field_value(key, value)}
    key = _SHORT.get(name, name)
    if is_null:
        return {key: None}
    return {key: text.strip() if key not in KEYS or KEYS[key].kind.is_text else parse_plain_yaml(text)}


def _field(key: str) -> str | None:
    """The field of a job that a key means, under whatever name; None if none."""
    name = key.removeprefix(f"{JOB}.")
    return None if unknown_fields([name]) or field_named(name) == "prompt" else name


def _known(key: str) -> str:
    """The same key; raises `RunConfigError` if it is none."""
    if key not in KEYS and _field(key) is None:
        raise RunConfigError(_unknown(key))
    return key


def _field_value(field: str, value: Any) -> Any:
    """As in a table of prompts."""
    return field_from_text(field, value) if isinstance(value, str) else value


def _cut(text: str) -> str:
    return printable(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}...")


def make(values: Mapping[str, Any], sweeps: Mapping[str, Sequence[Any]] | None = None) -> RunConfig:
    """A configuration.

    Args:
      values: by key, as files and settings have them (`model.dtype`, `job.steps` or `steps`).
      sweeps: from `sweeps.read_sweeps`.

    Raises:
      RunConfigError: for an unknown key or a value out of its range.
    """
    try:
        return _made({str(name): value for name, value in values.items()}, sweeps or {})
    except JobError as error:
        raise RunConfigError(str(error)) from error


def _made(values: Mapping[str, Any], sweeps: Mapping[str, Sequence[Any]]) -> RunConfig:
    keys: dict[str, Any] = {}
    job: dict[str, Any] = {}
    for name, value in values.items():
        key = _known(_SHORT.get(name, name))
        if key in KEYS:
            keys[key] = _truth(key, value)
        else:
            job[key.removeprefix(f"{JOB}.")] = value
    swept = tuple((name, tuple(each)) for name, each in sweeps.items())
    return replaced(RunConfig(job=_job(job), sweeps=swept), keys)


def _truth(key: str, value: Any) -> Any:
    """`yes` and the like as in a table of prompts."""
    return truth_from_text(key, value) if KEYS[key].kind is TRUTH and isinstance(value, str) else value


def _job(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    fields = {name: _field_value(name, value) for name, value in with_fields_named(given).items()}
    return tuple(sorted((name, value) for name, value in fields.items() if value is not None))


# --- What is no key ---


def _meant(name: str) -> str | None:
    """The key that a name stands for without its section, or in a version before."""
    return f"{JOB}.{field_named(name)}" if _field(name) == name else _moved(name)


def _moved(name: str) -> str | None:
    return FORMER.get(name) or BY_NAME.get(name)


def _unknown(name: str) -> str:
    if found := _moved(name):
        return f"unknown key {quoted(name)}: it is {found}"
    return f"unknown key {quoted(name)}{near_match(name, (*KEYS, *_FIELDS))}; known: {', '.join(KEYS)}, fields of a job"


def _unknown_section(name: str) -> str:
    if found := _meant(name):
        section, _, key = found.partition(".")
        return f"unknown section {quoted(name)}: it is {found}, so write {section}: and below it {key}:"
    known = (*SECTIONS, JOB)
    return f"unknown section {quoted(name)}{near_match(name, known)}; known: {', '.join(known)}"
