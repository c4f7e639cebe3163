"""Rows of Parquet files, however small the file and large what it unfolds to."""

import contextlib
import decimal
import functools
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.sources.rows import MARK, MAX_LINE_BYTES, PromptFileError, Row, typed_row
from pipelines.sources.sweeps import MAX_PER_ROW
from pipelines.sources.tables import check_columns
from sdjax.messages import printable, quoted

# Rows that are read at once, and bytes that these may unfold to.
_BATCH = 256
_BATCH_BYTES = 64 * 2**20
# Of a column in a row group of more bytes than the above: bytes of a value on average, and of one that is packed.
_MOST_MEAN = 256 * 2**10
_MOST_RATIO = 1000
# Values of a column in a row group: of one row that has nearly all, and for each row besides.
_MOST_IN_ONE_ROW, _MOST_IN_A_ROW = 16 * MAX_PER_ROW, 64
# Of a gzipped file, which has to be unpacked as a whole, on the disk.
_MOST_UNPACKED = 2**30
_CHUNK = 2**20


def read_parquet(stream: io.BufferedIOBase, name: str) -> Iterator[Row]:
    """A column per job field; lines are rows, counted from 1."""
    with contextlib.ExitStack() as stack:
        # A gzipped file can't be read from its end, where parquet keeps its table of contents.
        file = stack.enter_context(_unpacked(stream, name)) if isinstance(stream, gzip.GzipFile) else stream
        whole = _guarded(lambda: pq.ParquetFile(file), name)
        lists = _columns_of_texts_in_lists(whole)
        opened = _guarded(lambda: pq.ParquetFile(file, metadata=whole.metadata, read_dictionary=lists), name)
        schema = _guarded(lambda: whole.schema_arrow, name)
        check_columns([column.replace(MARK, "") for column in schema.names], name)
        _check_types(schema, name)
        number = 0
        for index in range(opened.metadata.num_row_groups):
            at_once = _rows_at_once(opened.metadata.row_group(index), name, number)
            batches = opened.iter_batches(at_once, row_groups=[index])
            while (batch := _guarded(functools.partial(next, batches, None), name)) is not None:
                yield from _rows(batch, name, number)
                number += batch.num_rows


def _guarded(read: Callable[[], Any], name: str) -> Any:
    try:
        return read()
    except Exception as error:  # whatever it may be that pyarrow says of a damaged file
        raise PromptFileError(
            f"{name}: not a whole parquet file: {printable(str(error)[:300])}. Write it again."
        ) from error


@contextlib.contextmanager
def _unpacked(stream: io.BufferedIOBase, name: str) -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        while data := stream.read(_CHUNK):
            if file.tell() > _MOST_UNPACKED:
                raise PromptFileError(f"{name}: unpacks to more than {_MOST_UNPACKED} bytes; unpack it, and name that")
            file.write(data)
        yield file


def _check_types(schema: Any, name: str) -> None:
    for field in schema:
        if not _is_plain(field.type) and not (_is_list(field.type) and _is_plain(field.type.value_type)):
            kind = printable(str(field.type)[:200])
            raise PromptFileError(
                f"{name}: the column {quoted(field.name)} holds {kind}; expected text, numbers, "
                "true and false, or lists of these. Write it again as one of them."
            )


def _is_plain(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_boolean)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    return any(test(kind) for test in (*tests, *numbers))


def _is_list(kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _columns_of_texts_in_lists(file: Any) -> list[str]:
    """By their paths: read as numbers of texts, since one row may hold one text a million times."""
    columns = [file.metadata.schema.column(index) for index in range(file.metadata.num_columns)]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY" and column.max_repetition_level]


def _rows_at_once(group: Any, name: str, before: int) -> int:
    """How many rows of a group can be read at once, by what its table of contents says.

    Raises:
      PromptFileError: if a column unfolds to far more than prompts do.
    """
    size = 0
    for index in range(group.num_columns):
        column = group.column(index)
        size += (unfolded := max(column.total_uncompressed_size, 0))
        mean, ratio = unfolded / max(column.num_values, 1), unfolded / max(column.total_compressed_size, 1)
        if unfolded > _BATCH_BYTES and (mean > _MOST_MEAN or ratio > _MOST_RATIO):
            raise PromptFileError(
                f"{name}: from row {before + 1} on the column {quoted(column.path_in_schema)} unfolds from "
                f"{column.total_compressed_size} bytes to {unfolded}, which no prompts do; write it again"
            )
        if column.num_values > _MOST_IN_ONE_ROW + _MOST_IN_A_ROW * group.num_rows:
            raise PromptFileError(
                f"{name}: from row {before + 1} on the column {quoted(column.path_in_schema)} has {column.num_values} "
                f"values for {group.num_rows} rows; expected up to {MAX_PER_ROW} for a row"
            )
    return min(_BATCH, max(1, _BATCH_BYTES // max(size, 1)))


def _rows(batch: Any, name: str, before: int) -> Iterator[Row]:
    small = _bytes(batch) <= MAX_LINE_BYTES
    for index in range(batch.num_rows):
        row, number = batch.slice(index, 1), before + index + 1
        if not small and (size := _bytes(row)) > MAX_LINE_BYTES:
            yield Row(name, number, None, "", f"its values have {size} bytes; expected up to {MAX_LINE_BYTES}")
        else:
            yield _row(row, name, number)


def _bytes(batch: Any) -> int:
    """Of its values, each for itself."""
    return sum(_bytes_of(column) for column in batch.columns)


def _bytes_of(values: Any) -> int:
    if _is_list(values.type):
        return _bytes_of(values.flatten())
    if pa.types.is_dictionary(values.type):
        return _bytes_of(values.indices) + (pc.sum(pc.take(_lengths(values.dictionary), values.indices)).as_py() or 0)
    return 8 * len(values) + (pc.sum(_lengths(values)).as_py() or 0)


def _lengths(values: Any) -> Any:
    texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return pc.cast(pc.binary_length(values), pa.int64()) if texts else pa.array([8] * len(values), pa.int64())


def _row(row: Any, name: str, number: int) -> Row:
    try:
        [values] = row.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8
        return Row(name, number, None, "", f"a value can't be read: {error}")
    values = {column: _plain(value) for column, value in values.items()}
    return typed_row(name, number, values, json.dumps(values, default=str, ensure_ascii=False))


def _plain(value: Any) -> Any:
    """A decimal as the whole number or the float that it is."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
