"""The versions with which `make peers` measures are pinned."""

import re
from pathlib import Path

from benchmarks.peers import page

ROOT = Path(page.__file__).parents[2]
LOCKS = (ROOT / "requirements.lock", ROOT / "benchmarks" / "peers" / "requirements.lock")


def names(lock: Path) -> list[str]:
    lines = lock.read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "names and versions, and no addresses"
    return [line.partition("==")[0].lower().replace("_", "-") for line in lines]


def test_each_package_is_pinned_in_one_place():
    ours, theirs = map(names, LOCKS)
    assert len(set(ours) | set(theirs)) == len(ours) + len(theirs)
    assert {"diffusers"} <= {*ours} and {"openvino", "stable-diffusion-cpp-python", "matplotlib"} <= {*theirs}
