"""Steps around plain functions: a function gives and takes elements, its step the bytes of them.

A function is one of a module, and its arguments are small, since both are pickled into the graph. Keys are short texts.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam

from pipelines.elements import Element, decode, encode, is_of


def create(elements: Iterable[Element]) -> beam.Create:
    """These elements, on one worker."""
    return beam.Create([encode(element) for element in elements], reshuffle=False)


def each(function: Callable[..., Iterable[Element]], *arguments: Any) -> beam.ParDo:
    """An element -> elements."""
    return beam.FlatMap(_each, function, arguments).with_output_types(bytes)


def _each(data: bytes, function: Callable[..., Iterable[Element]], arguments: tuple[Any, ...]) -> Iterator[bytes]:
    return map(encode, function(decode(data), *arguments))


def with_keys(key: Callable[[Any], str]) -> beam.ParDo:
    """An element -> its key and the element."""
    return beam.Map(_with_key, key).with_output_types(tuple[str, bytes])


def _with_key(data: bytes, key: Callable[[Any], str]) -> tuple[str, bytes]:
    return key(decode(data)), data


def groups(function: Callable[..., Iterable[Element]], *arguments: Any) -> beam.ParDo:
    """A key and all elements that have it -> elements."""
    return beam.FlatMap(_group, function, arguments).with_output_types(bytes)


def _group(
    group: tuple[str, Iterable[bytes]], function: Callable[..., Iterable[Element]], arguments: tuple[Any, ...]
) -> Iterator[bytes]:
    key, data = group
    return map(encode, function(key, map(decode, data), *arguments))


def only(*kinds: type) -> beam.ParDo:
    """The elements of these kinds."""
    return beam.Filter(is_of, kinds).with_output_types(bytes)


@beam.typehints.with_input_types(int)
@beam.typehints.with_output_types(int)
class Total(beam.CombineFn):
    """The sum of whole numbers. Beam's own has a pickled accumulator."""

    def create_accumulator(self) -> int:
        """Nothing yet."""
        return 0

    def add_input(self, accumulator: int, number: int) -> int:
        """One more number."""
        return accumulator + number

    def merge_accumulators(self, accumulators: Iterable[int]) -> int:
        """The sum of sums."""
        return sum(accumulators)

    def extract_output(self, accumulator: int) -> int:
        """The sum itself."""
        return accumulator

    def get_accumulator_coder(self) -> beam.coders.Coder:
        """Beam's standard one of whole numbers."""
        return beam.coders.VarIntCoder()
