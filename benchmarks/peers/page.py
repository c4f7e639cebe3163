"""Writes what was measured into the page about performance, and draws its picture.

    python -m benchmarks.peers.page [build/peers/peers.json]

Cases of that file take the place of those in docs/performance.json, of which the tables in docs/performance.md, between
`<!-- peers: CASE -->` and `<!-- end of peers -->`, and docs/images/peers.png are made.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import CASES
from benchmarks.peers.tables import case_table

_DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS, PICTURE = _DOCS / "performance.md", _DOCS / "performance.json", _DOCS / "images" / "peers.png"
_TABLE = re.compile(r"(<!-- peers: (\w+) -->\n).*?(<!-- end of peers -->)", re.DOTALL)


def with_tables(text: str, report: Mapping[str, Any]) -> str:
    """The page's text with the tables of a report."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{case_table(report, found[2])}\n{found[3]}", text)


def main() -> None:
    """The command line."""
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if len(sys.argv) > 1:
        report |= json.loads(Path(sys.argv[1]).read_text())
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), report), "utf-8")
    from benchmarks.peers.picture import draw

    draw(report, list(CASES), PICTURE)


if __name__ == "__main__":
    main()
