"""Beam's runners: each gives the same output or says in one line what it lacks; and the flags that are theirs."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import StandardOptions

from pipelines import runners
from pipelines.config import RunConfigError
from pipelines.runners import RunnerError

ROOT = Path(__file__).parents[2]
PROMPTS = ("a red apple", "the cat", "a castle on the green", "a dog", "the cat")
# A job server in this process, and workers in it.
SERVER = ("--job_endpoint=embed", "--environment_type=LOOPBACK")
# A graph that is only drawn: a runner that says it is done, and did nothing.
DRAWN = "apache_beam.runners.render.RenderRunner"


def table() -> dict[str, tuple[str, str]]:
    """The runners of docs/runners.md: what happens, and what they need."""
    text = (ROOT / "docs" / "runners.md").read_text("utf-8")
    return {
        name: (happens, needs) for name, happens, needs in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", text, re.M)
    }


def that(happens: str) -> list[str]:
    return [name for name, (what, _) in table().items() if what == happens]


def contents(out: Path) -> dict[str, bytes]:
    """All files of an output."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def message(*flags: str) -> str:
    """Why there is no pipeline with these flags: one line."""
    with pytest.raises((RunConfigError, RunnerError)) as told:
        runners.pipeline(list(flags))
    assert len(str(told.value)) < 400 and str(told.value).isprintable()
    return str(told.value)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    path.write_text("prompt,steps\n" + "".join(f"{prompt},2\n" for prompt in PROMPTS) + "bad,-1\n")
    return path


@pytest.fixture(scope="module")
def local(prompts, run_here, tmp_path_factory) -> dict[str, bytes]:
    """What the local runner makes."""
    out = tmp_path_factory.mktemp("local")
    counts = run_here(prompts, out, host_batch=2)
    assert (counts.rows, counts.made, counts.duplicates, counts.rejected_rows) == (6, 4, 1, 1)
    return contents(out)


# --- Runners ---


def test_the_table_of_the_docs_has_every_runner_that_beam_knows():
    assert table().keys() == {*StandardOptions.KNOWN_RUNNER_NAMES, "DaskRunner"}
    assert {happens for happens, _ in table().values()} == {"runs", "needs", "refused"}


@pytest.mark.parametrize("name", that("runs"))
def test_runners_that_run_make_the_same_files(name, prompts, local, run_here, tmp_path):
    run_here(prompts, tmp_path, [f"--runner={name}"], host_batch=2)
    assert contents(tmp_path) == local


def test_a_job_server_in_this_process_makes_the_same_files(prompts, local, run_here, tmp_path):
    run_here(prompts, tmp_path, ["--runner=PortableRunner", *SERVER], host_batch=2, shards=1)
    assert {**contents(tmp_path), "summary.json": b""} == {**local, "summary.json": b""}


@pytest.mark.parametrize("mode", [["--runner=PortableRunner", *SERVER], ["--direct_running_mode=multi_threading"]])
def test_what_ends_a_run_in_a_worker_is_told_once(mode, prompts, run_here, capfd, tmp_path):
    (tmp_path / "metadata.jsonl").write_text("no JSON\n")
    with pytest.raises(Exception, match=re.escape(f"{tmp_path}/metadata.jsonl, line 1: not valid JSON")):
        run_here(prompts, tmp_path, mode)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", that("needs"))
def test_runners_that_lack_something_say_what(name):
    needed = re.search(r"`([^`]+)`", table()[name][1])
    assert needed
    module = {"DaskRunner": "distributed"}.get(name, "google.auth")
    if needed[1].startswith("--"):
        assert message(f"--runner={name}").startswith(f"{name}: it needs ") and needed[1] in message(f"--runner={name}")
    elif importlib.util.find_spec(module) is None:
        assert needed[1] in message(f"--runner={name}")


@pytest.mark.parametrize("name", that("refused"))
def test_runners_that_can_not_be_used_are_refused(name):
    assert message(f"--runner={name}").startswith(f"{name}: it ")


def test_names_of_runners_are_read_as_beam_reads_them():
    module = "apache_beam.runners.direct.direct_runner"
    for name in ("fnapi", "FNAPIRUNNER", "direct", "Direct", f"{module}.DirectRunner", "switchingdirectrunner", ""):
        assert runners.runner_of(name) == "FnApiRunner"
    assert runners.runner_of(f"{module}.BundleBasedDirectRunner") == "BundleBasedDirectRunner"
    assert runners.runner_of("my.own.FlinkRunner") == "my.own.FlinkRunner"


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--runner=Flnk", "Beam has no runner Flnk (did you mean FlinkRunner?)"),
        ("--runner=zzz", "Beam has no runner zzz; expected one of"),
        ("--runner=PythonRPCDirectRunner", "Beam has no runner PythonRPCDirectRunner"),
        ("--runner=no.such.Runner", "no.such.Runner: Beam can't take this runner or its flags: No module named 'no'"),
        ("--runner=os.path", "os.path: Beam can't take this runner"),
        ("--runner=Prism --prism_location=/gone", "PrismRunner: --prism_location=/gone: there is no such file"),
        (f"--runner=Prism --prism_location={__file__}", "test_runners.py: not a program; expected prism"),
        ("--runner=Flink --flink_job_server_jar=/gone.jar", "--flink_job_server_jar=/gone.jar: there is no such file"),
        ("--runner=Spark --job_endpoint=localhost:1", "SparkRunner: no job server answers at localhost:1"),
        ("--runner=Portable --job_endpoint=localhost:1", "PortableRunner: no job server answers at localhost:1"),
        ("--runner=Portable --job_endpoint=nowhere", "--job_endpoint=nowhere: expected HOST:PORT"),
        ("--runner=Portable --job_endpoint=a:99999", "expected HOST:PORT"),
        ("--runner=Portable --job_endpoint=embed", "say where its workers find sdjax: --environment_type=LOOPBACK"),
    ],
)
def test_a_runner_that_is_not_there_is_told_in_one_line(flags, words):
    assert words in message(*flags.split())


def test_a_job_server_in_java_needs_java(tmp_path):
    (tmp_path / "server.jar").write_bytes(b"")
    java = "--job_server_java_launcher=no-such-java"
    for name in ("flink", "spark", "kafka_streams"):
        jar = f"--{name}_job_server_jar={tmp_path / 'server.jar'}"
        assert "needs Java, and there is no no-such-java" in message(f"--runner={name.replace('_', '')}", jar, java)


# --- Flags ---


@pytest.mark.parametrize(
    "flags, words",
    [
        ("hello world", "'hello' after --: expected Beam's flags"),
        ("--direct_num_workers=1 hello", "'hello' after --"),
        ("-x", "'-x' after --"),
        ("--", "'--' after --"),
        ("--runner=Spark --strange value hello", "'hello' after --"),
        ("--help", "Beam knows no flag --help"),
        ("--direct_num_wrkers=2", "Beam knows no flag --direct_num_wrkers (did you mean --direct_num_workers?)"),
        ("--direct_num_workers=-1", "--direct_num_workers=-1: expected a number up to"),
        ("--direct_num_workers=99999999999999999999", "expected a number up to"),
        ("--direct_num_workers=many", "invalid int value: 'many'"),
        ("--direct_num_workers=2.5", "invalid int value: '2.5'"),
        ("--direct_num_workers", "expected one argument"),
        ("--direct_num_workers=2", "is without effect in one process: add --direct_running_mode=multi_processing"),
        ("--direct_num_workers=0", "is without effect in one process"),
        ("--direct_running_mode=threads", "invalid choice: 'threads' (choose from"),
        ("--direct_runner_bundle_repeat=-1", "expected 0 to 100"),
        ("--direct_test_splits={", "invalid loads value"),
        ("--runner=Flink --direct_num_workers=2", "--direct_num_workers is without effect on FlinkRunner"),
        ("--runner=BundleBasedDirect --direct_num_workers=2", "is without effect on BundleBasedDirectRunner"),
        ("--flink_master=cluster:8081", "--flink_master is without effect on FnApiRunner; it is for FlinkRunner"),
        ("--job_endpoint=cluster:8099", "--job_endpoint is without effect on FnApiRunner; it is for PortableRunner"),
        ("--runner=Dataflow --dry_run=True", "--dry_run: a run is made to its end by one command"),
        ("--dry_run", "--dry_run: expected one argument"),
        ("--streaming", "--streaming: a run is made to its end"),
        ("--resource_hint=fast", "Unknown resource hint: fast"),
    ],
)
def test_a_flag_that_can_not_be_is_told_in_one_line(flags, words):
    assert words in message(*flags.split())


def test_flags_of_a_cluster_that_beam_does_not_know_are_handed_on(tmp_path):
    (tmp_path / "server.jar").write_bytes(b"")
    flags = [
        "--runner=Flink",
        f"--flink_job_server_jar={tmp_path / 'server.jar'}",
        "--strange",
        "value",
        "--job_server_java_launcher=sh",
    ]
    built = runners.pipeline(flags)
    assert built.options.get_all_options(retain_unknown_options=True)["strange"] == "value"
    assert runners.workers(built) == 16  # not known


@pytest.mark.parametrize("flags", ["--parallelism=3", "--num_workers=3", "--num_workers=2 --max_num_workers=3"])
def test_how_many_workers_a_cluster_has_is_taken_from_its_flags(flags, tmp_path):
    (tmp_path / "server.jar").write_bytes(b"")
    jar = f"--flink_job_server_jar={tmp_path / 'server.jar'}"
    flags = ["--runner=Flink", jar, "--job_server_java_launcher=sh", *flags.split()]
    assert runners.workers(runners.pipeline(flags)) == 3


def test_as_many_workers_as_cores_can_be_asked_for():
    flags = ["--direct_running_mode=multi_processing", "--direct_num_workers"]
    assert runners.workers(runners.pipeline([*flags, "0"])) == os.cpu_count()
    assert runners.workers(runners.pipeline([*flags, "3"])) == 3
    assert runners.workers(runners.pipeline([])) == 1


@pytest.mark.parametrize(
    "flags, here",
    [
        ("", True),
        ("--direct_running_mode=multi_threading --direct_num_workers=2", True),
        ("--direct_running_mode=multi_processing", False),
        ("--runner=BundleBasedDirectRunner", False),
    ],
)
def test_steps_surely_run_in_this_process_where_the_local_runner_starts_no_other(flags, here):
    assert runners.in_this_process(runners.pipeline(flags.split())) == here


# --- What a runner leaves undone ---


def test_a_runner_that_makes_nothing_of_a_run_leaves_the_manifest_as_it_was(prompts, local, run_here, tmp_path):
    for name, data in local.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(data)
    with pytest.raises(RunnerError, match="take another runner"):
        run_here(prompts, tmp_path / "out", [f"--runner={DRAWN}", f"--render_output={tmp_path / 'graph.dot'}"])
    assert contents(tmp_path / "out") == local
