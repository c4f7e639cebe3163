"""The same jobs made by two revisions, and their pixels compared: whether a change of the code left every image alone.

    python -m benchmarks.same_pixels BEFORE [AFTER] [--only RUN ...] [--networks-may-differ]

Tests compare with references under a tolerance, which a change of one bit passes. Restructuring promises more: the
same bits. So some three hundred small jobs of every kind (`jobs.py`: modes, samplers, schedules, adapters, upscalers,
prompt syntaxes, sources of noise, numbers of devices) are made through `sdjax generate` by the git revision BEFORE and
by AFTER (the working tree if it is not named), on this machine, as other processors give other bits. Compared are the
sha256 of the decoded pixels of each image and of each file of previews, row by row; ids, metadata and file names may
differ.

Printed are, for each run, its rows and images, the seconds that both revisions took ("kept" for results that are there
from an earlier time, which those of a commit are) and how many rows differ; then each row that differs, with what of it
does (the image, previews, the number of them, a reject), its job, and the metadata that differ, which often tell why.
The exit status is 0 if all rows are the same, 1 if any differs, is missing or rejected. Rows that an upscaler's network
enlarges are listed by themselves, and with `--networks-may-differ` they may: its compiled batch may be of another size.
Rows that only BEFORE rejects ask for something new: they are listed, and no failure.

Everything is in build/same-pixels: the files that jobs name (`files.py`), the revisions' trees, results by commit, the
last outputs. One revision takes about ten minutes on two cores the first time, less when most programs are compiled.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from benchmarks.same_pixels.comparison import NETWORK, NEW, OTHER, Difference, differences
from benchmarks.same_pixels.files import files_digest, write_files
from benchmarks.same_pixels.jobs import RUNS, Run
from benchmarks.same_pixels.runs import RowResult, make

ROOT = Path(__file__).parent.parent.parent
WORK = ROOT / "build" / "same-pixels"
FILES, COMPILED = WORK / "files", WORK / "compiled"
# What else than the revision decides bits on one machine.
_DECIDING_PACKAGES = ("flax", "jax", "jaxlib", "numpy", "pillow", "scipy")


class RevisionError(Exception):
    """There is no such revision; the message says which."""


class Revision(NamedTuple):
    """A revision to compare: its name in reports, the folder of its files, and its commit (None: a working tree)."""

    name: str
    tree: Path
    commit: str | None


def revision(name: str | None) -> Revision:
    """A git revision, with its files under `WORK`; None is the working tree.

    Raises:
      RevisionError: if there is no such revision.
    """
    if name is None:
        return Revision("the working tree", ROOT, None)
    commit = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").decode().strip()
    tree = WORK / "trees" / commit
    if not tree.is_dir():
        unfinished = tree.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
            archive.extractall(unfinished, filter="data")
        unfinished.rename(tree)
    return Revision(name, tree, commit)


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise RevisionError(f"git {' '.join(arguments)}: {done.stderr.decode().strip() or 'there is no such revision'}")
    return done.stdout


def machine() -> str:
    """What of this machine and its packages decides bits."""
    try:
        processor = re.findall(r"^(?:model name|flags)\s*:.*", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:2]
    except OSError:
        processor = [platform.processor()]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _DECIDING_PACKAGES]
    return "\n".join([platform.machine(), *processor, str(os.cpu_count()), *versions])


def results(side: Revision, run: Run) -> tuple[list[RowResult], str]:
    """What came out of each row of a run, and the seconds that it took or "kept".

    The results of a commit are kept if no row was rejected.
    """
    name = run.name.replace(" ", "-")
    used = [PurePath("images"), *(value for value in run.keys.values() if isinstance(value, PurePath))]
    decides = f"{machine()}{files_digest(FILES, used)}{dataclasses.asdict(run)}"
    key = hashlib.sha256(decides.encode()).hexdigest()
    kept = WORK / "results" / str(side.commit) / key[:16] / f"{name}.json"
    if side.commit and kept.is_file():
        return [RowResult(*each) for each in json.loads(kept.read_text("utf-8"))], "kept"
    folder = WORK / "outputs" / (side.commit or "working-tree") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    found = make(side.tree, run, FILES, folder, COMPILED)
    if side.commit and not any(each.reason for each in found):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found), "utf-8")
    return found, f"{time.monotonic() - start:.0f} s"


def compare(sides: Sequence[Revision], runs: Sequence[Run]) -> Iterator[Difference]:
    """Makes the runs with both revisions, printing a line for each; gives the rows that differ."""
    write_files(FILES)
    found: dict[str, list[list[RowResult]]] = {}
    for run in runs:
        made = [results(side, run) for side in sides]
        found[run.name] = [each for each, _ in made]
        apart = list(differences(run, *found[run.name]))
        for side, own, others in zip(sides, found[run.name], found.get(run.same_as or "", ()), strict=False):
            for each in differences(run, others, own):
                note = f"{each.outputs} by {side.name}: as in {run.same_as!r} before, here after"
                apart.append(each._replace(outputs=[note], metadata={}))
        images = sum(len(row.metadata) for row in found[run.name][0])
        seconds = ", ".join(f"{taken:>6}" for _, taken in made)
        verdict = f"{len({each.number for each in apart})} differ" if apart else "the same"
        print(f"{run.name:<28}{len(run.rows):>4} rows {images:>4} images   {seconds}   {verdict}", flush=True)
        yield from apart


def summary(found: Sequence[Difference], runs: Sequence[Run], networks_may_differ: bool) -> bool:
    """Prints the rows that differ and their counts; gives whether the comparison has failed."""
    groups = {kind: [each for each in found if each.kind == kind] for kind in (NEW, NETWORK, OTHER)}
    for kind, group in groups.items():
        if group:
            print(f"\n{len(group)} {kind}")
            print("\n".join(each.report() for each in group))
    rows = sum(len(run.rows) for run in runs)
    counts = ", ".join(f"{len(group)} {kind}" for kind, group in groups.items())
    print(f"\n{rows} jobs in {len(runs)} runs; differences: {counts}")
    return bool(groups[OTHER] or (groups[NETWORK] and not networks_may_differ))


def main() -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_pixels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [run.name for run in RUNS]
    parser.add_argument("before", metavar="BEFORE", help="a git revision")
    parser.add_argument("after", metavar="AFTER", nargs="?", help="another (default: the working tree)")
    parser.add_argument("--only", metavar="RUN", nargs="+", choices=names, help=f"these runs: {', '.join(names)}")
    parser.add_argument(
        "--networks-may-differ", action="store_true", help="don't count what upscalers' networks enlarge"
    )
    options = parser.parse_args()
    runs = [run for run in RUNS if options.only is None or run.name in options.only]
    try:
        sides = [revision(options.before), revision(options.after)]
    except RevisionError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"before: {sides[0].name} ({sides[0].commit}), after: {sides[1].name}")
    found = list(compare(sides, runs))
    return int(summary(found, runs, options.networks_may_differ))


if __name__ == "__main__":
    sys.exit(main())
