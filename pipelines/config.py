"""What a run is told besides its prompts: from a YAML file and from `--set KEY=VALUE`."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.sources.sweeps import MAX_PER_ROW, ROW_KEYS
from sdjax.checkpoints.plain_yaml import PlainYamlError, parse_plain_yaml, read_plain_yaml
from sdjax.diffusion.noise import MAX_SEED
from sdjax.diffusion.scheduler_config import PREDICTION_TYPES
from sdjax.engine.planner import LORA_MODES
from sdjax.images.encode import FORMATS
from sdjax.images.previews import ANIMATIONS
from sdjax.jobs.job import FIELDS, JobError, check_fields
from sdjax.jobs.text_values import field_from_text, field_named, truth_from_text, with_fields_named
from sdjax.messages import near_match, printable, quoted
from sdjax.model import DTYPES
from sdjax.models.vae_tiles import VAE_TILE


class RunConfigError(ValueError):
    """A config file or a `--set` that can't be used; the message names the key."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is done.

    Attributes:
      model: a bundled name, a diffusers folder, a single file, or a name on a hub.
      variant: which files of a folder, for example "fp16"; None takes the plain ones.
      revision: of a name on a hub: a branch, tag or commit; a run keeps to the commit that it began with.
      model_config: of a single file: a YAML file or a diffusers folder that says what its tensors don't.
      prediction_type: what the UNet predicts, where nothing else says it: "epsilon" or "v_prediction".
      ema: whether to take the averaged weights of a single file that holds both.
      pickled: whether pickled files (.ckpt, .pt, .bin) may be read; nothing in them is run.
      vae: another VAE: a single file or a folder; None keeps the model's own.
      vae_revision: as `revision`, of that VAE.
      dtype: of the network's arithmetic: "float32", "bfloat16" or "float16".
      vae_dtype: of the VAE's; None is the same, or float32 for a VAE that says it overflows in half precision.
      vae_tile: pictures of more pixels than four squares of this side are decoded in tiles; 0 decodes all at once.
      lora_folder: of the LoRAs that jobs and prompts name; None has none.
      lora_mode: "merged" into the weights, or "batched": beside them, so that images of several share a batch.
      hypernetwork_folder: of hypernetworks, likewise.
      embedding_folder: of textual inversions, likewise.
      controlnet_folder: of ControlNets and T2I adapters, likewise.
      depth_model: folder of an estimator of depth (MiDaS DPT), for models and ControlNets that see depth.
      upscaler_folder: of upscalers (Real-ESRGAN), for `upscaler` and `hires_upscaler`.
      batch_size: images per device in a compiled program; part of the fingerprint.
      shards: parts into which sampling is cut, each done by one worker at a time; has no say in any image. None takes
        as many as there are workers on this machine, or 64 on a cluster.
      host_batch: images handed to the engine at once; has no say in any image.
      format: of the picture files: "png", "webp" (lossless) or "jpeg".
      animation: of previews: "webp" or "gif".
      wildcards: folder of the files that `__name__` in prompts stands for; None has none.
      combinations: of templates, for rows that don't say: "random", "all" or "none" (they are plain text).
      classifier: a bundled name or a folder, for rows with a `classifier_scale`; None has none.
      sweeps: values of fields that rows leave open, from the command line.
      sweep: how these are combined: "product" or "zip".
      repeat: images per row.
      run_seed: from which the seeds of rows without one are derived.
      job: fields for what rows leave open.
    """

    model: str = "emoji"
    variant: str | None = None
    revision: str | None = None
    model_config: str | None = None
    prediction_type: str | None = None
    ema: bool = False
    pickled: bool = False
    vae: str | None = None
    vae_revision: str | None = None
    dtype: str = "float32"
    vae_dtype: str | None = None
    vae_tile: int = VAE_TILE
    lora_folder: str | None = None
    lora_mode: str = "merged"
    hypernetwork_folder: str | None = None
    embedding_folder: str | None = None
    controlnet_folder: str | None = None
    depth_model: str | None = None
    upscaler_folder: str | None = None
    batch_size: int = 4
    shards: int | None = None
    host_batch: int = 64
    format: str = "png"
    animation: str = "webp"
    wildcards: str | None = None
    combinations: str = "random"
    classifier: str | None = None
    sweeps: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    sweep: str = "product"
    repeat: int = 1
    run_seed: int = 0
    job: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if name == "shards" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise RunConfigError(f"{name} = {quoted(value)}: expected a whole number from {least} to {most}")
        for name, known in (
            ("format", FORMATS),
            ("animation", ANIMATIONS),
            ("combinations", ROW_KEYS["combinations"]),
            ("sweep", ROW_KEYS["sweep"]),
            ("dtype", DTYPES),
            ("lora_mode", LORA_MODES),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise RunConfigError(f"{name} = {quoted(value)}: expected one of {', '.join(known)}")
        if self.vae_dtype is not None and (not isinstance(self.vae_dtype, str) or self.vae_dtype not in DTYPES):
            raise RunConfigError(f"vae_dtype = {quoted(self.vae_dtype)}: expected one of {', '.join(DTYPES)}")
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            raise RunConfigError(
                f"prediction_type = {quoted(self.prediction_type)}: expected one of {', '.join(PREDICTION_TYPES)}"
            )
        for name, (kind, expected) in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise RunConfigError(f"{name} = {quoted(getattr(self, name))}: expected {expected}")
        try:  # rows may give what these need beside them
            check_fields(dict(self.job))
        except ValueError as error:
            raise RunConfigError(str(error)) from error


_RANGES: Mapping[str, tuple[int, int]] = {
    "batch_size": (1, 1 << 16),
    "shards": (1, 1 << 20),
    "host_batch": (1, 1 << 20),
    "repeat": (1, MAX_PER_ROW),
    "run_seed": (0, MAX_SEED),
    "vae_tile": (0, 1 << 16),
}
_TEXT = (str | None, "text")
_KINDS: Mapping[str, tuple[Any, str]] = {
    "model": (str, "text"),
    **dict.fromkeys(("variant", "revision", "model_config", "vae", "vae_revision", "wildcards", "classifier"), _TEXT),
    **dict.fromkeys(("lora_folder", "hypernetwork_folder", "embedding_folder"), _TEXT),
    **dict.fromkeys(("controlnet_folder", "depth_model", "upscaler_folder"), _TEXT),
    **dict.fromkeys(("ema", "pickled"), (bool, "true or false")),
}
_TYPES = typing.get_type_hints(RunConfig)
_NOT_TEXT = (bool, int, int | None)
_RUN_KEYS = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name not in ("job", "sweeps"))
# Of a setting, in errors.
_SHOWN_LETTERS = 200
# A prompt belongs into the prompt file.
_JOB_KEYS = tuple(name for name in FIELDS if name != "prompt")


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, whose values are as `parse_plain_yaml` reads them; raises `RunConfigError`."""
    try:
        data = read_plain_yaml(path)
    except FileNotFoundError:
        raise RunConfigError(f"{path}: there is no such file") from None
    except (OSError, PlainYamlError) as error:
        raise RunConfigError(f"{path}: can't be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise RunConfigError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def read_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts; nothing or "null" as a value takes back what a config file says. Raises `RunConfigError`.

    Values of jobs are read as in a table of prompts, texts of the run are taken as they stand, its numbers as in YAML.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise RunConfigError(f"--set {_cut(setting)}: expected KEY=VALUE")
        key = field_named(key.strip())
        try:
            found[key] = _setting(key, text)
        except (JobError, PlainYamlError) as error:
            raise RunConfigError(f"--set {_cut(setting)}: the value can't be read: {error}") from error
    return found


def _setting(key: str, text: str) -> Any:
    if text.strip() in ("", "null") and key != "negative_prompt":
        return None
    if key in FIELDS:
        return field_from_text(key, text)
    return parse_plain_yaml(text) if _TYPES.get(key) in _NOT_TEXT else text.strip()


def _cut(text: str) -> str:
    return printable(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}...")


def make(keys: Mapping[str, Any], sweeps: Mapping[str, Sequence[Any]] | None = None) -> RunConfig:
    """A run config from keys of the run and of jobs together.

    Args:
      keys: from a file and from settings.
      sweeps: from `sweeps.read_sweeps`.

    Raises:
      RunConfigError: for an unknown key or a value out of its range.
    """
    known = (*_RUN_KEYS, *_JOB_KEYS)
    try:
        keys = with_fields_named(keys)
    except JobError as error:
        raise RunConfigError(str(error)) from error
    for key in keys:
        if key not in known:
            raise RunConfigError(f"unknown key {quoted(key)}{near_match(str(key), known)}; known: {', '.join(known)}")
    try:
        read = {key: _from_text(key, value) if isinstance(value, str) else value for key, value in keys.items()}
    except JobError as error:
        raise RunConfigError(str(error)) from error
    run = {key: value for key, value in read.items() if key in _RUN_KEYS}
    job = tuple(sorted((key, value) for key, value in read.items() if key in _JOB_KEYS and value is not None))
    swept = tuple((key, tuple(values)) for key, values in (sweeps or {}).items())
    return RunConfig(**run, job=job, sweeps=swept)


def _from_text(key: str, text: str) -> Any:
    """What a text means under a key: as in a table of prompts, where `yes` is a truth and "20" is a number."""
    if key in FIELDS:
        return field_from_text(key, text)
    return truth_from_text(key, text) if _TYPES[key] is bool else text
