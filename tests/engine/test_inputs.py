"""What the programs are given is checked, each field of each group, when a group is made."""

import dataclasses
import types
import typing

import jax
import numpy as np
import pytest
from jaxtyping import AbstractArray, TypeCheckError

from sdjax.diffusion.sample import EvaluationArrays
from sdjax.engine import inputs

GROUPS = (
    inputs.PromptTokens, inputs.PerImage, inputs.PerEvaluation, inputs.Shared, inputs.StartInputs,
    inputs.EncoderInputs, inputs.Img2ImgInputs, inputs.NoisedImageInputs, EvaluationArrays,
)  # fmt: skip
# Lengths of axes by their names, no two alike.
LENGTHS = {name: length for length, name in enumerate(("b", *"kcntreqdhwyxgp", "registers", "terms"), start=4)}
# Trees of parameters, which differ from batch to batch.
PARAMETERS = {("PerImage", "low_rank"), ("Shared", "hypernetworks"), ("Shared", "controls")}


def shape_of(annotation):
    """The shape that an annotation of an array says; leading axes, "*n", are one."""
    axes = annotation.dim_str.split()
    return tuple(int(axis) if axis.isdecimal() else LENGTHS.get(axis, 3) for axis in axes)


def examples(annotation):
    """Values that fit an annotation."""
    if isinstance(annotation, types.UnionType):
        return [value for each in typing.get_args(annotation) for value in examples(each)]
    if annotation is types.NoneType:
        return [None]
    if dataclasses.is_dataclass(annotation):
        return [annotation(**{name: values[0] for name, values in fields_of(annotation).items()})]
    if hasattr(annotation, "leaftype"):
        return [(values, values) for values in examples(annotation.leaftype)]
    if annotation is typing.Any or typing.get_origin(annotation) is tuple:
        return [()]
    assert issubclass(annotation, AbstractArray)
    dtype = "float32" if "float32" in annotation.dtypes else annotation.dtypes[0].strip("^$")
    return [np.ones(shape_of(annotation), dtype.replace("bool_", "bool"))]


def fields_of(group):
    """The values that fit each field of a group."""
    return {name: examples(annotation) for name, annotation in typing.get_type_hints(group).items()}


def arrays_of(group):
    """Of each field that has arrays: its name, a value that fits, and the array in it (the last, if it has several)."""
    for name, values in fields_of(group).items():
        for value in values:
            if isinstance(value, np.ndarray | tuple) and len(value):
                yield name, value, jax.tree.leaves(value)[-1]


CASES = [
    pytest.param(group, name, value, array, id=f"{group.__name__}-{name}-{array.shape}")
    for group in GROUPS
    for name, value, array in arrays_of(group)
]
ARRAYS = pytest.mark.parametrize("group, name, value, array", CASES)


def made(group, name, value):
    """A group of values that fit, but for one."""
    return group(**{**{name: values[0] for name, values in fields_of(group).items()}, name: value})


def with_last(value, array):
    """A value with another last array."""
    return (*value[:-1], array) if isinstance(value, tuple) else array


@ARRAYS
def test_a_group_takes_what_its_annotations_say(group, name, value, array):
    assert getattr(made(group, name, value), name) is value


@ARRAYS
def test_an_array_of_another_dtype_is_refused(group, name, value, array):
    with pytest.raises(TypeCheckError):
        made(group, name, with_last(value, array.astype(np.int8)))


@ARRAYS
def test_an_array_of_more_axes_is_refused(group, name, value, array):
    with pytest.raises(TypeCheckError):
        made(group, name, with_last(value, array[None]))


@ARRAYS
def test_an_array_of_another_number_of_images_is_refused(group, name, value, array):
    longer = [np.repeat(array, 2, axis) for axis, length in enumerate(array.shape) if length == LENGTHS["b"]]
    assert len(longer) == (group is not inputs.Shared)
    for each in longer:
        with pytest.raises(TypeCheckError):
            made(group, name, with_last(value, each))


@pytest.mark.parametrize("group", GROUPS)
def test_all_that_is_not_checked_are_parameters(group):
    checked = {name for name, *_ in arrays_of(group)}
    nested = {name for name, values in fields_of(group).items() if dataclasses.is_dataclass(values[0])}
    names = {field.name for field in dataclasses.fields(group)}
    assert {(group.__name__, name) for name in names - checked - nested} <= PARAMETERS
