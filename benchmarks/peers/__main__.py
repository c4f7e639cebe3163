"""sdjax beside diffusers (eager, channels last, compiled), OpenVINO and stable-diffusion.cpp, in one run.

    python -m benchmarks.peers [--only CASE ...] [--peers PEER ...] [--rounds N] [--shapes small] [--out FILE]

`make peers` makes the environment and runs all of it; `build/peers` keeps the model (Stable Diffusion 1.5 at its real
size with random weights), what programs convert it to, and what they compile (16 GB of disk).

Programs run in processes of their own, in turns, at most two of them alive (10 GB of memory); each uses all processors
and float32, but for what says bf16. Told are medians, and how many times as fast as the baseline a program is: the
median of ratios, each to the run of the baseline just before. What each gives is compared with what the baseline gives.

FILE (by default `build/peers/peers.json`) keeps the cases that are not measured again, so that they can be run one by
one; `python -m benchmarks.peers.page` makes the page of them.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.full_size import write as write_full_size
from benchmarks.peers.cases import CASES, EMBEDDED, Case, turns
from benchmarks.peers.children import Children
from benchmarks.peers.machine import machine
from benchmarks.peers.peer import PEERS, obstacle
from benchmarks.peers.summary import Turn, difference, summarized
from benchmarks.peers.work import Work, label, operations


def measured(case: Case, model: Path, build: Path, peers: Sequence[str], small: bool, rounds: int) -> dict[str, Any]:
    """A case as the file keeps it."""
    results = []
    with Children(model, build) as children:
        for work in case.small if small else case.works:
            found = list(_runs(children, case, work, peers, rounds))
            rows = summarized(found, case.baseline)
            for name, row in rows.items():
                row["difference"] = difference(children.output_of(name), children.output_of(case.baseline))
            results.append({"work": work._asdict(), "operations": operations(work), "peers": rows})
            _print(work, rows)
    return {
        "title": case.title,
        "model": model.name,
        "baseline": case.baseline,
        "rounds": rounds,
        "works": results,
        "machine": machine(),
    }


def _runs(children: Children, case: Case, work: Work, peers: Sequence[str], rounds: int) -> Iterator[Turn]:
    measure = children.started if case.from_start else children.run
    if case.from_start:  # which fills the caches
        for name in (case.baseline, *peers):
            measure(name, work)
    for name in turns(case.baseline, peers, rounds, case.in_pairs):
        yield name, measure(name, work)


def _print(work: Work, rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        print(
            f"{label(work):32} {PEERS[name].label:26} {row['seconds']:9.4g} s"
            f"  {row['times_as_fast']:5.2f} times as fast"
            f"  {row['peak_bytes'] / 1e9:5.2f} GB at most  off by {row['difference']:.1e}",
            flush=True,
        )


def _able(case: Case, chosen: Sequence[str]) -> list[str]:
    """The programs of a case that are wanted and can be run here, but for its baseline."""
    able = []
    for name in case.peers:
        if name in chosen:
            why_not = obstacle(PEERS[name])
            if why_not:
                print(f"  without {PEERS[name].label}: {why_not}")
            else:
                able.append(name)
    return able


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = "; ".join(f"{name}: {case.title}, about {case.minutes} min" for name, case in CASES.items())
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=cases)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="without the baseline")
    parser.add_argument("--rounds", type=int, help="in place of each case's own number")
    parser.add_argument("--shapes", choices=["full", "small"], default="full", help="small: seconds, embedded model")
    parser.add_argument("--build", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    small, out = options.shapes == "small", options.out or options.build / "peers.json"
    report = json.loads(out.read_text()) if out.exists() else {}
    for name in options.only:
        case = CASES[name]
        if small and not case.small:
            continue
        print(f"{case.title} ({name})", flush=True)
        model = EMBEDDED if small or case.embedded else options.build / "sd15"
        if model != EMBEDDED and case.works[0].kind in ("unet", "image"):  # parts need none
            write_full_size(model, None)
        peers = _able(case, options.peers)
        report[name] = measured(case, model, options.build / model.name, peers, small, options.rounds or case.rounds)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
