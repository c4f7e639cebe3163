"""What of two results of the same rows differs."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.same_pixels.jobs import Row, Run
from benchmarks.same_pixels.runs import RowResult

# Metadata that differ between revisions, or between two runs of one, and say nothing of what was done.
_UNRELATED_METADATA = ("id", "file_name", "file_size", "steps_size", "animation_size", "sdjax")


# Kinds of differences: only the revision before rejects the row; an upscaler's network enlarged both images; all else.
NEW, NETWORK, OTHER = "new", "of upscalers' networks", "of others"


class Difference(NamedTuple):
    """A row whose results differ.

    outputs: what does: "image", previews, a reject with its reason.
    metadata: those that differ, before and after.
    kind: `NEW`, `NETWORK` or `OTHER`.
    """

    run: Run
    number: int
    outputs: list[str]
    metadata: dict[str, tuple[Any, Any]]
    kind: str

    @property
    def row(self) -> Row:
        """The row."""
        return self.run.rows[self.number]

    def report(self) -> str:
        """A few lines that name the row and what differs."""
        lines = [f"{self.run.name}, line {self.number + 1}: {self.row.covers}"]
        lines += [f"  {output}" for output in self.outputs]
        lines += [f"  job {json.dumps(self.row.fields)}"]
        lines += [f"  {name}: {before!r} before, {after!r} after" for name, (before, after) in self.metadata.items()]
        return "\n".join(lines)


def differences(run: Run, before: Sequence[RowResult], after: Sequence[RowResult]) -> Iterator[Difference]:
    """The rows whose results are not the same; those that made nothing in either are among them."""
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        if outputs := _differing_outputs(one, other):
            kind = _kind(run.rows[number], one, other)
            yield Difference(run, number, outputs, _differing_metadata(one, other), kind)


def _kind(row: Row, before: RowResult, after: RowResult) -> str:
    if before.reason and not after.reason:
        return NEW
    return NETWORK if row.network and before.digests and after.digests else OTHER


def _differing_outputs(before: RowResult, after: RowResult) -> list[str]:
    sides = (("before", before), ("after", after))
    rejects = [f"rejected {name}: {side.reason}" for name, side in sides if side.reason]
    if rejects or not (before.digests or after.digests):
        return rejects or ["no image, neither before nor after"]
    outputs = sorted({*before.digests, *after.digests})
    return [output for output in outputs if before.digests.get(output) != after.digests.get(output)]


def _differing_metadata(before: RowResult, after: RowResult) -> dict[str, tuple[Any, Any]]:
    """Of the first image of each: columns that both have, with other values."""
    if not (before.metadata and after.metadata):
        return {}
    one, other = before.metadata[0], after.metadata[0]
    columns = [name for name in one if name in other and name not in _UNRELATED_METADATA]
    return {name: (one[name], other[name]) for name in columns if one[name] != other[name]}
