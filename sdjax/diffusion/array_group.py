"""Groups of arrays: frozen dataclasses whose fields are annotated with shapes and dtypes, and which JAX takes as trees.

jaxtyping checks the fields of a dataclass when one is made (tests install its import hook), all at once: axes of one
name are of one length. It does not check those of a `NamedTuple`.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

_Group = TypeVar("_Group")


@dataclass_transform(frozen_default=True)
def array_group(group: type[_Group]) -> type[_Group]:
    """A class of annotated fields as a frozen dataclass, and a tree whose branches are its fields in their order."""
    made = dataclasses.dataclass(frozen=True, eq=False)(group)
    names = tuple(field.name for field in dataclasses.fields(made))  # type: ignore[arg-type]
    keys = tuple(map(jax.tree_util.GetAttrKey, names))

    def branches(value: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(value, name) for name in names), None

    def branches_with_keys(value: Any) -> tuple[tuple[tuple[Any, Any], ...], None]:
        return tuple(zip(keys, branches(value)[0], strict=True)), None

    def from_branches(_: None, values: Iterable[Any]) -> Any:
        # Not by `__init__`: JAX also puts trees together of what is no array, such as specs of sharding.
        value = object.__new__(made)
        value.__dict__.update(zip(names, values, strict=True))
        return value

    jax.tree_util.register_pytree_with_keys(made, branches_with_keys, from_branches, branches)
    return made
