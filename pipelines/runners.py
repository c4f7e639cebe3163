"""Beam's flags and runners: which of them a run can have and what each needs, found out before anything is made.

docs/runners.md has the table of all runners.
"""

import argparse
import contextlib
import difflib
import logging
import os
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    StandardOptions,
    WorkerOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.flink_runner import MAGIC_HOST_NAMES
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines import dask_cluster
from pipelines.config import RunConfigError

LOCAL, DASK = "FnApiRunner", "DaskRunner"
# Beam's would first look for Prism, and download it, and take the local runner only if that fails.
_SAME_AS_LOCAL = ("DirectRunner", "SwitchingDirectRunner", "TestDirectRunner")
_ON_THIS_MACHINE = (LOCAL, "BundleBasedDirectRunner", "PrismRunner")
_PORTABLE = ("PortableRunner", "FlinkRunner", "SparkRunner", "KafkaStreamsRunner", "PrismRunner")
# Which runners read flags that begin so. With others they would be without effect.
_READ_BY: Mapping[str, Iterable[str]] = {
    "direct_": (LOCAL,),
    "prism_": ("PrismRunner",),
    "flink_": ("FlinkRunner",),
    "spark_": ("SparkRunner",),
    "kafka_streams_": ("KafkaStreamsRunner",),
    "dask_": (DASK,),
    "job_endpoint": _PORTABLE,
    "environment_": _PORTABLE,
}
# Flags with which a runner does something else than to run, or does not wait for the end.
_OTHER_USES = ("dry_run", "template_location", "output_executable_path", "no_wait_until_finish", "streaming", "update")
_REFUSED = {
    "InteractiveRunner": "it is for notebooks, and keeps and shows parts of a graph; take another runner",
}
_PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism"
# Of a cluster whose flags don't say how many it has.
_UNKNOWN_WORKERS = 16
_MOST_REPEATS = 100
# Of another program's message.
_MOST_LETTERS = 300
# How long a server may take to answer, in seconds.
_ANSWER = 10.0


class RunnerError(ValueError):
    """A runner isn't there, failed, or lost something; the message says what is missing."""


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> Any:
        raise RunConfigError(f"Beam's flags: {message}")


def pipeline(flags: list[str]) -> beam.Pipeline:
    """An empty pipeline with the runner that Beam's flags name; without one the local runner.

    Raises:
      RunConfigError: for flags that nobody would read or whose values can't be.
      RunnerError: for a runner that isn't there, lacks something, or can't be used for whole runs.
    """
    runner = runner_of(_parsed(flags)[0].runner)
    if runner == DASK and (problem := dask_cluster.missing_packages()):
        raise RunnerError(f"{runner}: {problem}")
    given, unknown = _parsed(flags)  # with the flags of a runner that is imported now
    _check_unknown(unknown, runner in _ON_THIS_MACHINE, vars(given))
    options = PipelineOptions(flags)
    _check_values(options, runner)
    problem = _REFUSED.get(runner) or _NEEDS.get(runner, lambda _: "")(options)
    if problem:
        raise RunnerError(f"{runner}: {problem}")
    try:
        return beam.Pipeline(runner=_runner_object(runner, options), options=options)
    except Exception as error:  # whatever a module does that is imported by its name
        raise RunnerError(f"{runner}: Beam can't take this runner or its flags: {_short(error)}") from error


def _runner_object(runner: str, options: PipelineOptions) -> Any:
    """The runner, where Beam finds another one by its name, or none."""
    if runner == DASK:
        dask_cluster.set_partitions(options)
        return dask_cluster.runner()
    return FnApiRunner() if runner == LOCAL else None


def finish(built: beam.Pipeline) -> None:
    """Runs a pipeline to its end.

    Raises:
      RunnerError: if a runner other than the local one can't; from the local one errors come as they are.
    """
    runner = _runner(built.options)
    try:
        with _quiet(), contextlib.ExitStack() as stack:
            result = built.run()
            if client := getattr(result, "client", None):  # Dask's
                stack.enter_context(client)
            result.wait_until_finish()
    except Exception as error:
        if runner == LOCAL:
            raise
        raise RunnerError(f"{runner}: {_short(error)}") from error


class _WithoutTracebacks:
    """A stream that passes tracebacks over: Beam's workers print that of an element which fails, and of each retry."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._passed = False

    def write(self, text: str) -> int:
        self._passed = text.startswith("Traceback ") or (self._passed and text == "\n")
        return len(text) if self._passed else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which runners log nothing by themselves: what ends a run is reported once, in plain words."""
    level, stream = logging.root.manager.disable, sys.stderr
    logging.disable()
    sys.stderr = _WithoutTracebacks(stream)
    try:
        yield
    finally:
        sys.stderr = stream
        logging.disable(level)


def runner_of(named: str | None) -> str:
    """The class of the runner that a name in flags stands for; one that isn't Beam's by all of its path."""
    named = named or LOCAL
    name = named.rpartition(".")[2] if named.startswith("apache_beam.") else named
    known = {_stem(each): each for each in (*StandardOptions.KNOWN_RUNNER_NAMES, DASK)}
    found = known.get(_stem(name))
    if found:
        return LOCAL if found in _SAME_AS_LOCAL else found
    if "." in named:
        return named
    near = difflib.get_close_matches(_stem(name), known, 1)
    hint = f" (did you mean {known[near[0]]}?)" if near else f"; expected one of {', '.join(known.values())}"
    raise RunnerError(f"Beam has no runner {named}{hint}")


def _stem(name: str) -> str:
    return name.lower().removesuffix("runner")


def _runner(options: PipelineOptions) -> str:
    return runner_of(options.view_as(StandardOptions).runner)


def workers(built: beam.Pipeline) -> int:
    """How many worker processes there are, as far as a runner's flags say."""
    options = built.options
    runner = _runner(options)
    if runner == LOCAL:
        return options.view_as(DirectOptions).direct_num_workers or os.cpu_count() or 1
    if runner in _ON_THIS_MACHINE:
        return 1
    if runner == DASK:
        return dask_cluster.workers(options)
    given = options.view_as(WorkerOptions)
    parallelism = max(0, options.get_all_options().get("parallelism") or 0)
    return given.max_num_workers or given.num_workers or parallelism or _UNKNOWN_WORKERS


def in_this_process(built: beam.Pipeline) -> bool:
    """Whether the steps of a pipeline surely run in the process that starts it."""
    mode = built.options.view_as(DirectOptions).direct_running_mode
    return _runner(built.options) == LOCAL and mode != "multi_processing"


def _short(error: Exception) -> str:
    """The line of an error that says what happened: the last of a traceback, else the first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    traced = any("Traceback (most recent call last)" in line for line in lines)
    found = next((line for line in reversed(lines) if not line[0].isspace()), lines[0]) if traced else lines[0].strip()
    text = "".join(letter for letter in found if letter.isprintable())
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


# --- Flags ---


def _parsed(flags: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags of Beam's, and what its parser leaves; raises `RunConfigError` for values that it doesn't take."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    for group in {str(group): group for group in PipelineOptions.__subclasses__()}.values():
        group._add_argparse_args(parser)
    try:
        return parser.parse_known_args(flags)
    except (TypeError, AttributeError) as error:  # of an action of Beam's that expected another type
        raise RunConfigError(f"Beam's flags: {error}") from error


def _check_unknown(unknown: list[str], on_this_machine: bool, known: Iterable[str]) -> None:
    """Raises `RunConfigError` for what is no flag; a cluster may know flags that Beam doesn't."""
    before = ""
    for token in unknown:
        if before.startswith("--") and "=" not in before and not token.startswith("-"):
            before = ""  # its value
            continue
        if not token.startswith("--") or token == "--":
            raise RunConfigError(
                f"{token[:80]!r} after --: expected Beam's flags, as --NAME=VALUE; prompt files and output go before"
            )
        if on_this_machine or token == "--help":
            name = token[2:80].partition("=")[0]
            near = difflib.get_close_matches(name, known, 1)
            raise RunConfigError(f"Beam knows no flag --{name}" + (f" (did you mean --{near[0]}?)" if near else ""))
        before = token


def _check_values(options: PipelineOptions, runner: str) -> None:
    given = options.get_all_options(drop_default=True, retain_unknown_options=True)
    for name in given:
        for beginning, readers in _READ_BY.items():
            if name.startswith(beginning) and runner not in readers and "." not in runner:
                raise RunConfigError(f"--{name} is without effect on {runner}; it is for {', '.join(readers)}")
        if name in _OTHER_USES:
            raise RunConfigError(f"--{name}: a run is made to its end by one command; leave this flag out")
    direct = options.view_as(DirectOptions)
    cores = os.cpu_count() or 1
    most = max(16, cores)
    if not 0 <= direct.direct_num_workers <= most:
        raise RunConfigError(
            f"--direct_num_workers={direct.direct_num_workers}: expected a number up to {most}; each worker holds "
            f"a model of its own. 0 is as many as there are cores, here {cores}"
        )
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        raise RunConfigError(
            f"--direct_num_workers={direct.direct_num_workers} is without effect in one process: "
            "add --direct_running_mode=multi_processing"
        )
    if not 0 <= direct.direct_runner_bundle_repeat <= _MOST_REPEATS:
        raise RunConfigError(
            f"--direct_runner_bundle_repeat={direct.direct_runner_bundle_repeat}: expected 0 to {_MOST_REPEATS}"
        )


# --- What runners need ---


def _endpoint_problem(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return f"--job_endpoint={endpoint}: expected HOST:PORT"
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except OSError as error:
        return (
            f"no job server answers at {endpoint} ({error.strerror or error}): start it, or name another --job_endpoint"
        )
    return ""


def _environment_problem(options: PipelineOptions) -> str:
    """Beam's own image, which it takes if nothing is said, has no sdjax in it."""
    given = options.get_all_options(drop_default=True)
    says = ("environment_type", "environment_config", "environment_options", "sdk_container_image")
    if any(given.get(name) for name in (*says, "setup_file", "extra_packages", "requirements_file")):
        return ""
    return (
        "say where its workers find sdjax: --environment_type=LOOPBACK (this process), EXTERNAL or PROCESS, or an "
        "image of yours in --environment_config"
    )


def _portable_problem(options: PipelineOptions) -> str:
    endpoint = options.view_as(PortableOptions).job_endpoint
    if not endpoint:
        return "it needs a job server: --job_endpoint=HOST:PORT"
    return ("" if endpoint == "embed" else _endpoint_problem(endpoint)) or _environment_problem(options)


def _prism_problem(options: PipelineOptions) -> str:
    if endpoint := options.view_as(PortableOptions).job_endpoint:
        return _endpoint_problem(endpoint)
    path = options.view_as(PrismRunnerOptions).prism_location
    if not path:
        return f"it needs Beam's program prism: go install {_PRISM}@v{beam.__version__}, and --prism_location=FILE"
    if "://" not in path and not os.path.isfile(path):
        return f"--prism_location={path}: there is no such file"
    if "://" not in path and not (os.access(path, os.X_OK) or zipfile.is_zipfile(path)):  # Beam would make it one
        return f"--prism_location={path}: not a program; expected prism, which {_PRISM}@v{beam.__version__} makes"
    return ""


def _job_server_problem(jar: str, artifact: str, here: Callable[[Any], bool]) -> Callable[[PipelineOptions], str]:
    """Of a runner whose job server is a program in Java, which Beam starts if none is named that runs.

    jar: the flag that names it.
    artifact: what it is called where it is published.
    here: whether flags say that the workers are on this machine.
    """

    def problem(options: PipelineOptions) -> str:
        given = argparse.Namespace(**options.get_all_options())
        if given.job_endpoint:
            return _endpoint_problem(given.job_endpoint) or _environment_problem(options)
        if not (path := getattr(given, jar)):
            return f"it needs its job server: --{jar}=FILE ({artifact} {beam.__version__}), or --job_endpoint=HOST:PORT"
        if "://" not in path and not os.path.isfile(path):
            return f"--{jar}={path}: there is no such file"
        java = given.job_server_java_launcher
        if not shutil.which(java):
            return (
                f"its job server needs Java, and there is no {java}: install it, or name a server with --job_endpoint"
            )
        return "" if here(given) else _environment_problem(options)

    return problem


def _dataflow_problem(_: PipelineOptions) -> str:
    try:
        from apache_beam.runners.dataflow.internal import apiclient  # noqa: F401
    except ImportError as error:
        return f"it needs Google's packages ({error}): pip install 'apache-beam[gcp]'"
    return ""


_NEEDS: Mapping[str, Callable[[PipelineOptions], str]] = {
    "PortableRunner": _portable_problem,
    "PrismRunner": _prism_problem,
    "FlinkRunner": _job_server_problem(
        "flink_job_server_jar",
        "org.apache.beam:beam-runners-flink-VERSION-job-server",
        lambda given: given.flink_master in MAGIC_HOST_NAMES,
    ),
    "SparkRunner": _job_server_problem(
        "spark_job_server_jar",
        "org.apache.beam:beam-runners-spark-3-job-server",
        lambda given: given.spark_master_url.startswith("local"),
    ),
    "KafkaStreamsRunner": _job_server_problem(
        "kafka_streams_job_server_jar", "in no release, built from the source of Beam", lambda _: True
    ),
    DASK: dask_cluster.problem,
    "DataflowRunner": _dataflow_problem,
    "TestDataflowRunner": _dataflow_problem,
}
