"""One program in a process of its own, which does what it is asked, one line of JSON after the other.

    python -m benchmarks.peers.child PEER MODEL BUILD

A request is {"do": "prepare" or "run", "kind": ..., "sizes": [...], "output": FILE or null}; the reply tells seconds,
processor seconds, the most memory that was resident so far in bytes and, of sdjax, the bytes of its arrays.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.peer import PEERS, Peer, Run
from benchmarks.peers.work import Work, warm_up


def main() -> None:
    """Answers requests until there are no more."""
    name, model, build = sys.argv[1:]
    # What libraries print must not get between the replies.
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)
        runs: dict[Work, Run] = {}
        for line in sys.stdin:
            print(json.dumps(_reply(json.loads(line), PEERS[name], Path(model), Path(build), runs)), file=replies)


def _reply(request: dict[str, Any], peer: Peer, model: Path, build: Path, runs: dict[Work, Run]) -> dict[str, Any]:
    work = Work(request["kind"], tuple(request["sizes"]))
    if work not in runs:
        runs[work] = peer.prepare(work, model, build)
    begun, used = time.perf_counter(), time.process_time()
    output = runs[work](warm_up(work) if request["do"] == "prepare" else work)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - used
    if request["output"]:
        np.save(request["output"], output)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": _peak_bytes(), "array_bytes": _array_bytes()}


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _array_bytes() -> int | None:
    jax = sys.modules.get("jax")
    return sum(array.nbytes for array in jax.live_arrays()) if jax else None


if __name__ == "__main__":
    main()
