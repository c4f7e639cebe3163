"""A comparison sheet: the images of an output by the values of up to three fields."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from pipelines.sinks import open_output
from pipelines.sinks.sink import Sink
from pipelines.sources.sweeps import values_of
from sdjax import storage
from sdjax.images.captions import Grid, draw_grid, stacked
from sdjax.images.encode import decode
from sdjax.images.lettering import without_font
from sdjax.jobs.job import FIELDS
from sdjax.jobs.records import column_of
from sdjax.jobs.text_values import field_named, value_from_text

# Fields that follow from others, which do not tell images apart.
_DERIVED = frozenset({"id", "file_name", "steps_taken", "evaluations"})
# Images on a sheet, and values of one axis: more can't be looked at.
_MOST = 2500


class Axis(NamedTuple):
    """A field, and its values in their order; None takes all that there are."""

    field: str
    values: tuple[Any, ...] | None


class Axes(NamedTuple):
    """What varies along the columns, the rows and from block to block; None for nothing."""

    x: Axis | None
    y: Axis | None
    z: Axis | None


def write(out: str, target: str, axes: Axes, where: Mapping[str, Any]) -> tuple[int, int, str]:
    """Draws the sheet; gives how many images are on it, how many places are empty, and letters that no font here has.

    Args:
      out: an output of `generate`.
      target: a PNG file, written whole or not at all.
      axes: of the sheet.
      where: only images with these values.

    Raises:
      ValueError: for unknown fields, no images, more than one image at a place, or too many.
      StorageError: if the output can't be read or the sheet not be written.
    """
    x_field, y_field, z_field = (axis.field if axis else "" for axis in axes)
    used = [axis for axis in axes if axis]
    chosen = {axis.field: set(axis.values) for axis in used if axis.values is not None}
    sink = open_output(out)
    rows = [
        row
        for row in sink.rows()
        if _matches(row, where) and all(row.get(field) in values for field, values in chosen.items())
    ]
    if not rows:
        raise ValueError(f"{out}: there are no images {'with these values' if where or chosen else 'in it yet'}")
    for field, _ in used:
        if not any(field in row for row in rows):
            known = sorted(set().union(*rows))
            raise ValueError(f"{field!r} is no field of these images; known: {', '.join(known)}")
    fields = [axis.field for axis in used]
    if len(set(fields)) < len(fields):
        raise ValueError(f"axes {', '.join(fields)}: expected different fields")
    values = {axis.field: list(axis.values or _sorted(row.get(axis.field) for row in rows)) for axis in used}
    count = 1
    for field in fields:
        count *= len(values[field])
    if count > _MOST:
        product = " x ".join(f"{len(values[field])} of {field}" for field in fields)
        raise ValueError(f"{count} places, {product}: expected up to {_MOST}; choose with --where")
    placed = _placed(rows, fields)

    def place(*at: Any) -> tuple[Any, ...]:
        return tuple(value for axis, value in zip(axes, at, strict=True) if axis)

    pages = []
    for z in values.get(z_field, [None]):
        title = f"{z_field}: {_word(z)}" if z_field else ""
        images = [
            [_image(sink, placed.get(place(x, y, z))) for x in values.get(x_field, [None])]
            for y in values.get(y_field, [None])
        ]
        columns = [_word(x) for x in values[x_field]] if x_field else [""]
        words = [_word(y) for y in values[y_field]] if y_field else [""]
        pages.append(draw_grid(Grid(title, columns, words, images, (y_field, x_field))))
    data = io.BytesIO()
    stacked(pages).save(data, "PNG")
    storage.write_whole(target, data.getvalue())
    labels = (_word(value) for axis in used for value in values[axis.field])
    return len(placed), count - len(placed), without_font(labels)


def read_axis(text: str) -> Axis | None:
    """`FIELD`, or `FIELD=VALUES` with the values to be drawn, as for a sweep; None for no text.

    Raises:
      ValueError: for values that the field can't have.
    """
    name, equals, values = text.partition("=")
    field = field_named(name.strip())
    if not field:
        return None
    if not equals:
        return Axis(column_of(field), None)
    if field not in FIELDS:
        raise ValueError(f"{text}: {field} is no field of a job; its values can't be chosen")
    return Axis(column_of(field), tuple(value_from_text(field, value) for value in values_of(field, values)))


def read_where(texts: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts; raises `ValueError`."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--where {text}: expected KEY=VALUE")
        name = field_named(key.strip())
        wanted = value_from_text(name, value) if name in FIELDS else value
        found[column_of(name)] = wanted
    return found


def _matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(name in row and (row[name] == value or str(row[name]) == str(value)) for name, value in where.items())


def _sorted(values: Any) -> list[Any]:
    """Numbers by size, words by the alphabet; what is missing first."""
    different = set(values)
    numbers = all(value is None or isinstance(value, int | float) for value in different)

    def key(value: Any) -> tuple[bool, Any]:
        return value is not None, 0 if value is None else value if numbers else str(value)

    return sorted(different, key=key)


def _placed(rows: Sequence[Mapping[str, Any]], used: Sequence[str]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    placed: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        place = tuple(row.get(axis) for axis in used)
        if place in placed:
            differ = [
                name
                for name in row
                if name not in _DERIVED and name not in used and row[name] != placed[place].get(name)
            ]
            at = ", ".join(f"{axis} = {value!r}" for axis, value in zip(used, place, strict=True)) or "no axes"
            raise ValueError(
                f"there are several images with {at}; they differ in {', '.join(differ)}: take one of these as an "
                "axis, or choose with --where"
            )
        placed[place] = row
    return placed


def _image(sink: Sink, row: Mapping[str, Any] | None) -> Image.Image | None:
    if row is None:
        return None
    name = row["file_name"]
    return Image.fromarray(decode(sink.read(name), name))


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value) or "(empty)"
