"""Beam's runners: which of them a run can have and what each needs, found out before anything is made."""

import os

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.config import RunConfigError

# Runners on this machine, which know how many workers there are; on others work is cut into so many parts.
_LOCAL_RUNNERS = ("", "direct", "fnapi", "bundlebaseddirect", "switchingdirect", "prism")
_CLUSTER_SHARDS = 64


class RunnerError(ValueError):
    """A runner isn't there, failed, or lost something; the message says what is missing."""


def checked_options(flags: list[str]) -> PipelineOptions:
    """Beam's options.

    Raises:
      RunConfigError: for flags that nobody would read, and for runners that lose data.
    """
    options = PipelineOptions(flags)
    known = options.get_all_options(drop_default=True)
    runner = _runner(options)
    if runner == "dask":
        raise RunConfigError("Beam's DaskRunner loses parts of a run without a word; take another runner")
    if runner in _LOCAL_RUNNERS:
        strange = options.get_all_options(drop_default=True, retain_unknown_options=True).keys() - known.keys()
        if strange:
            raise RunConfigError(f"Beam knows no flag --{', --'.join(sorted(strange))}")
    return options


def _runner(options: PipelineOptions) -> str:
    """The runner's name as Beam compares it: "direct" for DirectRunner, in whatever module; "" if none is named."""
    named = options.view_as(StandardOptions).runner or ""
    return named.rpartition(".")[2].lower().removesuffix("runner")


def workers(options: PipelineOptions) -> int:
    """Over how many workers the sampling is spread, if the configuration leaves that open."""
    if _runner(options) not in _LOCAL_RUNNERS:
        return _CLUSTER_SHARDS
    return max(1, options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1)


def pipeline(options: PipelineOptions) -> beam.Pipeline:
    """A pipeline that is to be built."""
    return beam.Pipeline(runner=options.view_as(StandardOptions).runner or FnApiRunner(), options=options)


def finish(built: beam.Pipeline, options: PipelineOptions) -> None:
    """Runs a pipeline to its end."""
    built.run().wait_until_finish()
