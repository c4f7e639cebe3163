"""What other packages add to sdjax by entry points: samplers, schedules, prompt syntaxes, sinks and kinds of models.

A package names what it adds in its pyproject.toml, by group and name:

    [project.entry-points."sdjax.samplers"]
    ralston = "sdjax_ralston:SAMPLER"

Nothing of it is imported before a run names it. What decides the bits of an image is in its id and in its metadata,
with the distribution, its version and the sha256 of its files: another version makes other images.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Container, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple, TypeVar

SAMPLERS = "sdjax.samplers"
SCHEDULES = "sdjax.schedules"
SYNTAXES = "sdjax.syntaxes"
SINKS = "sdjax.sinks"
FAMILIES = "sdjax.families"

Row = TypeVar("Row")


class ExtensionError(ValueError):
    """What another package adds can't be used; the message names the package."""


class Extension(NamedTuple):
    """One thing that another package adds.

    name: by which runs name it.
    distribution, version: of the package, as installed.
    digest: sha256 of its files.
    """

    group: str
    name: str
    distribution: str
    version: str
    digest: str

    def __str__(self) -> str:
        """As it stands in ids and metadata."""
        return f"{self.group} {self.name}: {self.distribution} {self.version} sha256 {self.digest}"


@functools.cache
def _entry_points(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """What is installed, by name; a process looks once."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for each in importlib.metadata.entry_points(group=group):
        found[each.name] = (*found.get(each.name, ()), each)
    return found


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages add to a group; nothing is imported."""
    return tuple(sorted(_entry_points(group)))


@functools.cache
def find(group: str, name: str) -> Extension | None:
    """What a package adds under a name, without importing it; None if none does.

    Raises:
      ExtensionError: if two packages do, or its source isn't there.
    """
    found = _entry_points(group).get(name, ())
    if not found:
        return None
    owners = [(each.dist.name, each.dist.version) if each.dist else ("?", "?") for each in found]
    if len(set(owners)) > 1:
        listed = " and ".join(f"{distribution} {version}" for distribution, version in owners)
        raise ExtensionError(f"{name!r} of {group} is added by {listed}: uninstall all but one of them")
    return Extension(group, name, *owners[0], _source_digest(found[0]))


def _source_digest(entry: EntryPoint) -> str:
    """sha256 over the names and contents of a package's files.

    Of an installed package these are all that its distribution lists. One that is installed for editing lists none;
    there it is all below the folder of the module.
    """
    module = _module_file(entry)
    files = {str(file): Path(str(file.locate())) for file in (entry.dist.files or () if entry.dist else ())}
    files = {name: file for name, file in files.items() if _counts(name) and file.is_file()}
    if module.resolve() not in {file.resolve() for file in files.values()}:
        below = module.parent.rglob("*") if module.name == "__init__.py" else (module,)
        found = ((file.relative_to(module.parent).as_posix(), file) for file in below if file.is_file())
        files = {name: file for name, file in found if _counts(name)}
    lines = (f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _counts(name: str) -> bool:
    """Whether a file is part of a package, and not of how it was installed."""
    return "__pycache__" not in name and ".dist-info" not in name


def _module_file(entry: EntryPoint) -> Path:
    """The file of an entry point's package: its `__init__.py`, or that of a single module. Nothing is imported."""
    names = entry.module.split(".")
    for count in range(1, len(names) + 1):  # packages that several distributions share have no file
        name = ".".join(names[:count])
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            break
        if spec and spec.origin:
            return Path(spec.origin)
    raise ExtensionError(f"{entry.group} {entry.name}: there is no module {name} with a file; reinstall its package")


def row_named(name: str, own: Mapping[str, Row], group: str, kind: type[Row]) -> Row:
    """A row of one of sdjax' own tables, or what a package adds under its name.

    Raises:
      KeyError: if there is none.
      ExtensionError: as of `load`.
    """
    row: Row | None = own[name] if name in own else load(group, name, kind)
    if row is None:
        raise KeyError(name)
    return row


def added_by(name: str | None, own: Container[str], group: str) -> Extension | None:
    """The package that adds what a name stands for; None for one of sdjax' own. Raises as `find`."""
    return None if name is None or name in own else find(group, name)


def load(group: str, name: str, kind: type[Row]) -> Row | None:
    """What a package adds under a name, imported; None if none does.

    Args:
      group: one of the constants above.
      name: of the entry point.
      kind: what it has to be an instance of.

    Raises:
      ExtensionError: if it can't be imported, or is of another type.
    """
    extension = find(group, name)
    if extension is None:
        return None
    row = _loaded(extension)
    if not isinstance(row, kind):
        expected = "a class" if kind is type else kind.__name__
        raise ExtensionError(f"{extension}: it is of type {type(row).__name__}; expected {expected}")
    return row


@functools.cache
def _loaded(extension: Extension) -> object:
    try:
        return _entry_points(extension.group)[extension.name][0].load()
    except Exception as error:  # whatever a package does when it is imported
        raise ExtensionError(f"{extension}: it can't be imported: {error!r}") from error
