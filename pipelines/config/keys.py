"""What a key of the configuration is: its default, the values that it takes, and what it means."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

from sdjax import extensions
from sdjax.assets import BUNDLED
from sdjax.messages import quoted


class RunConfigError(ValueError):
    """A config file or a `--set` that can't be used; the message names the key."""


class Kind(NamedTuple):
    """The values that a key takes.

    expected: these in words, for errors and docs.
    holds: whether a value is one of them.
    is_text: whether they are text, which a `--set` gives as it stands; others are written as in YAML.
    is_path: whether they say where something is.
    bundled: which of these are names of what comes with the package.
    """

    expected: str
    holds: Callable[[Any], bool]
    is_text: bool = True
    is_path: bool = False
    bundled: tuple[str, ...] = ()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


TEXT = Kind("text", _is_text)
PATH = Kind("a path", _is_text, is_path=True)
PATH_OR_HUB = Kind("a path or org/name", _is_text, is_path=True)
AUTO = "auto"
TRUTH = Kind("true or false", lambda value: isinstance(value, bool), is_text=False)


def or_bundled(kind: Kind) -> Kind:
    """A path, or a name of what comes with the package."""
    others = kind.expected.replace(" or ", ", ")
    return kind._replace(expected=f"{others} or {', '.join(BUNDLED)}", bundled=BUNDLED)


def one_of(known: Iterable[str]) -> Kind:
    """One of some names."""
    names = tuple(known)
    return Kind(f"one of {', '.join(names)}", lambda value: _is_text(value) and value in names)


def one_of_or_added(known: Iterable[str], group: str) -> Kind:
    """One of some names, or one that another package adds to a group of entry points."""
    kind = one_of(known)
    return kind._replace(
        expected=f"{kind.expected}, or one that another package adds",
        holds=lambda value: kind.holds(value) or value in extensions.names(group),
    )


def whole(least: int, most: int) -> Kind:
    """A whole number."""

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Kind(f"a whole number from {least} to {most}", holds, is_text=False)


def or_auto(kind: Kind) -> Kind:
    """The values of a kind, or `AUTO`: the run finds one of them out."""
    return kind._replace(expected=f"{kind.expected}, or {AUTO}", holds=lambda value: value == AUTO or kind.holds(value))


class Key(NamedTuple):
    """A key of a section: what it takes besides its default, and what it means."""

    kind: Kind
    default: Any
    doc: str


def key(default: Any, kind: Kind, doc: str) -> Any:
    """A field of a `Section`; None, if it is the default, stands for "not given"."""
    return dataclasses.field(default=default, metadata={"key": Key(kind, default, doc)})


@dataclasses.dataclass(frozen=True)
class Section:
    """Keys that are about one thing, checked when they are made.

    Raises:
      RunConfigError: for a value that its key doesn't take.
    """

    section: ClassVar[str]

    def __init_subclass__(cls, *, section: str) -> None:
        cls.section = section

    def __post_init__(self) -> None:
        for name, (kind, default, _) in self.keys().items():
            value = getattr(self, name)
            if not kind.holds(value) and not (value is None and default is None):
                raise RunConfigError(f"{self.section}.{name} = {quoted(value)}: expected {kind.expected}")

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """The keys by name."""
        return {field.name: field.metadata["key"] for field in dataclasses.fields(cls)}
