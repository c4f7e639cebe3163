"""What was measured, as a picture."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peers.peer import PEERS
from benchmarks.peers.work import Work, label

_OURS, _OTHERS = "#0b6e4f", "#b8b8b8"
_BAR_INCHES, _PANEL_INCHES, _WIDTH_INCHES = 0.3, 0.85, 8.0


def draw(report: Mapping[str, Any], names: list[str], file: Path) -> None:
    """Writes a picture with a panel of bars for each of the cases that were measured: how many times as fast."""
    cases = [report[name] for name in names if name in report]
    bars = [list(_bars(case)) for case in cases]
    heights = [_PANEL_INCHES + _BAR_INCHES * len(each) for each in bars]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, case, each in zip(panels, cases, bars, strict=True):
        _panel(axes, case, each)
    figure.savefig(file, dpi=110)


def _bars(case: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Of each: its name, its length, and whether it is of sdjax."""
    several = len(case["works"]) > 1
    for result in case["works"]:
        work = Work(result["work"]["kind"], tuple(result["work"]["sizes"]))
        for name, row in result["peers"].items():
            if name != case["baseline"]:
                shown = f"{PEERS[name].label}: {label(work)}" if several else PEERS[name].label
                yield shown, row["times_as_fast"], name == "sdjax"


def _panel(axes: Axes, case: Mapping[str, Any], bars: list[tuple[str, float, bool]]) -> None:
    names, lengths, ours = zip(*bars, strict=True)
    drawn = axes.barh(range(len(bars)), lengths, color=[_OURS if own else _OTHERS for own in ours], height=0.7)
    axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=9)
    axes.set_yticks(range(len(bars)), names, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.15 * max(1, *lengths))
    axes.set_title(f"{case['title']} ({PEERS[case['baseline']].label} = 1)", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
