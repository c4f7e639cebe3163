"""What was measured, as tables in Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.peers.peer import PEERS
from benchmarks.peers.work import Work, label

Result = Mapping[str, Any]


def case_table(report: Mapping[str, Result], name: str) -> str:
    """The table of a case, below a line that says how and on what it was measured."""
    if name not in report:
        return "Not measured yet.\n"
    case = report[name]
    several = len(case["works"]) > 1 and case["works"][0]["operations"] is not None
    rows = _side_by_side(case) if several else _one_below_the_other(case)
    return f"{_circumstances(name, case)}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _circumstances(name: str, case: Result) -> str:
    machine = case["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return (
        f"{case['title']}: `python -m benchmarks.peers --only {name}`; medians of {case['rounds']} rounds on "
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{machine['system']}, load average {machine['load']} at the end; revision {machine['revision']}, {versions}."
    )


def _side_by_side(case: Result) -> Iterator[tuple[str, ...]]:
    """A row for each piece of work, a column for each program."""
    names = list(case["works"][0]["peers"])
    compared = [name for name in names if name != case["baseline"]]
    head = ("", *(PEERS[name].label for name in names), *(f"{PEERS[name].label}, times as fast" for name in compared))
    yield head
    yield ("---",) * len(head)
    for result in case["works"]:
        peers = result["peers"]
        cells = (_time_and_rate(peers[name]["seconds"], result["operations"]) for name in names)
        yield label(_work(result)), *cells, *(_ratio(peers[name]["times_as_fast"]) for name in compared)


def _one_below_the_other(case: Result) -> Iterator[tuple[str, ...]]:
    """A row for each piece of work and program."""
    head = ("", "program", "time", "times as fast", "by processor time", "most memory", "largest difference")
    yield head
    yield ("---",) * len(head)
    for result in case["works"]:
        work = _work(result)
        for name, row in result["peers"].items():
            yield (
                label(work),
                PEERS[name].label,
                _time(work, row["seconds"]),
                _ratio(row["times_as_fast"]),
                _ratio(row["times_as_fast_by_cpu_seconds"]),
                f"{row['peak_bytes'] / 1e9:.2f} GB",
                f"{row['difference']:.1e}" if row["difference"] else "",
            )


def _work(result: Result) -> Work:
    return Work(result["work"]["kind"], tuple(result["work"]["sizes"]))


def _time(work: Work, seconds: float) -> str:
    if work.kind == "image" and work.size("images") > 1:
        return f"{work.size('images') / seconds:.3g} images/s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _time_and_rate(seconds: float, operations: int) -> str:
    return f"{1000 * seconds:.3g} ms ({operations / seconds / 1e9:.0f} GFLOP/s)"


def _ratio(times: float) -> str:
    return f"{times:.2f}"
