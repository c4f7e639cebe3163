"""The contract of a sink: where a run's images and their rows go, and where they are read from again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from sdjax.engine.engine import Result
from sdjax.images.encode import FORMATS


class StoredItem(NamedTuple):
    """What there is of an image in an output: one file of it, or its row in the manifest as it was left.

    id: of the image.
    kind: "image", "steps" for its previews, or "row".
    name: of the file; of a row, that of the image that it states.
    size: of the file, in bytes.
    row: what stands in the manifest.
    """

    id: str
    kind: Literal["image", "steps", "row"]
    name: str
    size: int = 0
    row: Mapping[str, Any] | None = None


class WriteResult(NamedTuple):
    """What became of an image that was to be written: its row in the manifest, or the problem with it."""

    id: str
    row: Mapping[str, Any] | None
    problem: str | None = None


class Finding(NamedTuple):
    """What is wrong with a file of an output."""

    file: str
    problem: str


class Sink(Protocol):
    """The images of an output and their rows.

    A sink is made from an output's URL and the formats of a run, opens nothing by that, and travels to workers as it
    is. Names of images are a sink's own: others hand them back as they got them, and know only that one ends like the
    files of its format.

    What a sink writes is atomic. An image of which `write` has given a row is whole in the output, and stays so
    whatever is killed afterwards; until then `complete_row` never reports it. And it is idempotent:
    the same image written again, by a repeated bundle or a later run, leaves the output as it was.

    All functions raise `StorageError` for what can't be read or written.
    """

    @property
    def url(self) -> str:
        """URL of the output."""

    @property
    def manifest(self) -> str:
        """Name of the file with the rows."""

    # --- What a run does with it ---

    def stored_items(self) -> Iterator[StoredItem]:
        """All that there is of images and rows, in any order, streaming.

        Raises:
          StorageError: also for a manifest that sdjax could not have written.
        """

    def complete_row(self, items: Sequence[StoredItem], steps: bool) -> dict[str, Any] | None:
        """The row of an image that is done; None if it is to be made.

        Args:
          items: what there is of it.
          steps: whether its previews have to be there too.
        """

    def write(self, results: Iterable[Result]) -> Iterator[WriteResult]:
        """Writes images, and says of each what became of it once it is whole in the output.

        That may come at any time: a sink of shards takes all results before it gives its first row.
        """

    def write_rows(self, run: str, part: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Writes a part of the manifest, which waits for the others; gives how many images it states.

        Args:
          run: name of the run, unlike any other's.
          part: name of the part. Parts are in the order of their names, and rows within one in that of their ids.
          rows: those of an image that comes twice are the same.
        """

    def finish(self, run: str, parts: Iterable[str]) -> None:
        """Makes the manifest of all its parts; until that is done it is as it was."""

    def remove_leftovers(self) -> Sequence[str]:
        """Deletes what killed runs have left behind, and nothing of runs that go on; gives its names."""

    # --- What reads an output ---

    def images(self) -> Iterator[StoredItem]:
        """The images that there are, found by a listing: they need not be whole."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the manifest with seeds as numbers, streaming; `file_name` is the image's name.

        Raises:
          StorageError: also for a manifest that sdjax could not have written: no row refers to a path outside of the
            output.
        """

    def read(self, name: str) -> bytes:
        """The bytes of an image's file."""

    def path(self, name: str) -> str:
        """Where an image or the manifest is, for messages."""

    def check(self) -> Iterator[Finding]:
        """Compares manifest and images with each other, reading all of them."""


def format_of(name: str) -> str:
    """The format of an image by the ending of its name, a key of `FORMATS`."""
    ending = name.rpartition(".")[2]
    return next(kind for kind, known in FORMATS.items() if known.extension == ending)
