"""Wildcards: files whose lines may stand in the place of `__name__`, and how many texts a template stands for."""

import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sdjax.library.finding import files_under, has_companion, near, plain, with_plain_ending
from sdjax.text.template_grammar import (
    MAX_DEPTH,
    MAX_LETTERS,
    Choice,
    Option,
    Part,
    Reference,
    Template,
    TemplateError,
    check_number,
    has_template,
    lines_of,
    parse_template,
)

# Texts of which one result may be put together, so that wildcards that name each other twice can't go on for ever.
MAX_PIECES = 1_000_000
# From here on combinations are not counted any more.
MANY = 10**18
# Of all wildcards that a run reads, and bytes of one file: more is no list for prompts, and would fill the memory.
MAX_LINES = 1_000_000
MAX_FILE_BYTES = 1 << 25
# Files in a folder of wildcards.
MAX_FILES = 100_000
_ENDING = ".txt"
# Files in which other tools look for wildcards; this one reads lines of text alone.
_OTHER_ENDINGS = (".yaml", ".yml", ".json")
# With these a name stands for several files, if none has the name itself.
_PATTERN_SIGNS = re.compile(r"[*?\[]")


# --- Wildcards ---


class Wildcards:
    """What may stand in the place of `__name__`: the lines of files, each read once, when it is needed.

    Lines that are blank or begin with `#` are passed over, and of equal lines the first counts. A line may be a
    template itself.
    """

    def __init__(
        self,
        names: Callable[[], Iterable[str]],
        read: Callable[[str], Iterable[str]],
        folder: str | None,
        others: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Takes the ways to the files.

        Args:
          names: gives the names of all wildcards, such as "animals/cats".
          read: gives the lines of one as they are in the file.
          folder: where they are, for messages; None if there is no folder.
          others: gives the paths from the folder of files that other tools read as wildcards and this one does not.
        """
        self._list, self._read, self._folder, self._list_others = names, read, folder, others
        self._options: dict[str, tuple[Option, ...]] = {}
        self._sizes: dict[str, _Sizes] = {}
        self._lines_read = 0

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all wildcards, sorted."""
        return tuple(sorted(self._list()))

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @functools.cached_property
    def _others(self) -> tuple[str, ...]:
        return tuple(sorted(self._list_others()))

    def options(self, reference: Reference) -> tuple[Option, ...]:
        """The lines for a reference, in the order of the files' names.

        Raises:
          TemplateError: if there is no such wildcard, none of its lines counts, or one can't be read.
        """
        name = reference.name
        if name not in self._options:
            lines: dict[str, Option] = {}
            for file in self._files(reference):
                for line, option in self._lines(file):
                    lines.setdefault(line, option)
            if not lines:
                raise TemplateError(f"there is no line in the wildcard {name[:60]!r}; fill it", reference.position)
            self._options[name] = tuple(lines.values())
        return self._options[name]

    def _files(self, reference: Reference) -> Sequence[str]:
        """The names of the files for a reference: the one that has its name, or those that fit it as a pattern."""
        name = re.sub(r"[\\/]+", "/", reference.name)  # as paths are written on Windows
        for given in (
            reference.name,
            name,
            plain(name),
            with_plain_ending(plain(name), (_ENDING,)).removesuffix(_ENDING),
        ):
            if given in self._known:
                return (given,)
        if not _PATTERN_SIGNS.search(name):
            raise TemplateError(self._missing(name), reference.position)
        pattern = Pattern(plain(name))
        unread = [path for path in self._others if pattern.fits(path.rpartition(".")[0])]
        if unread:
            raise TemplateError(
                f"{name[:60]!r} fits {_listed(unread)} too, and only text files are read; name the wildcards one by "
                f"one, as in {{__a__|__b__}}, or write the lines of it into a file that ends in {_ENDING}",
                reference.position,
            )
        files = [file for file in self.names if pattern.fits(file)]
        if not files:
            raise TemplateError(self._missing(name), reference.position)
        return files

    def _lines(self, name: str) -> list[tuple[str, Option]]:
        found = []
        for number, raw in enumerate(self._read(name), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            self._lines_read += 1
            place = f"wildcard {name!r}, line {number}"
            if self._lines_read > MAX_LINES:
                raise TemplateError(
                    f"{place}: all wildcards together have more than {MAX_LINES} lines; make them fewer"
                )
            if len(line) > MAX_LETTERS:
                raise TemplateError(f"{place}, has {len(line)} letters; expected up to {MAX_LETTERS}")
            try:
                parts = parse_template(line, comments=True).parts if "#" in line or has_template(line) else (line,)
            except TemplateError as error:
                raise TemplateError(f"{place}, {error}") from None
            found.append((line, Option(1, parts, place)))
        return found

    def _missing(self, name: str) -> str:
        plain = r"write \__ for plain underscores"
        if self._folder is None:
            return f"__{name[:60]}__ is a wildcard, but no folder of wildcards is given; give one, or {plain}"
        unread = [
            path for path in self._others if path.rpartition(".")[0].rpartition("/")[2] == name.rpartition("/")[2]
        ]
        if unread:
            return f"{_listed(unread)} can't be read; write its lines into a file {name[:60]}{_ENDING}, one a line"
        below = [known for known in self.names if known.endswith(f"/{name}")]
        suggested = list(dict.fromkeys(below[:3] + near(name, self.names, 3)))
        hint = f" (did you mean {' or '.join(f'__{known}__' for known in suggested)}?)" if suggested else ""
        what = "no wildcard fits" if _PATTERN_SIGNS.search(name) else "there is no wildcard"
        kinds = f"; of {_listed(self._others)} nothing is read" if self._others else ""
        return f"{what} {name[:60]!r} in {self._folder}{hint}; add a file {name[:60]}{_ENDING}, or {plain}{kinds}"

    def sizes(self, reference: Reference, path: tuple[str, ...], level: int) -> "_Sizes":
        """The sizes of the lines; `path` are the wildcards in which the reference stands, so many levels deep.

        Raises:
          TemplateError: if a line, or a wildcard in it, can't be had, or leads back to where it is.
        """
        name = reference.name
        if name in path:
            way = " -> ".join([*path[path.index(name) :], name])
            raise TemplateError(f"the wildcards lead back to where they begin: {way}; break the circle")
        if name not in self._sizes:
            lines = [self._size_of_line(option, (*path, name), level) for option in self.options(reference)]
            one = _Size(
                1 + max(size.depth for size in lines),
                max(size.pieces for size in lines),
                min(MANY, sum(size.results for size in lines)),
            )
            self._sizes[name] = _Sizes(lines, one)
        return self._sizes[name]

    def _size_of_line(self, line: Option, path: tuple[str, ...], level: int) -> "_Size":
        try:
            return size_of(line.parts, self, path, level)
        except TemplateError as error:
            if error.position is None:  # it tells a place already, or is about all of them
                raise
            raise TemplateError(f"{line.place}, {error}") from None


NO_WILDCARDS = Wildcards(tuple, lambda name: (), None)


def _listed(paths: Sequence[str]) -> str:
    return " and ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def wildcards_of_files(paths: Callable[[], Iterable[str]], read: Callable[[str], bytes], folder: str) -> Wildcards:
    """The wildcards among files.

    Args:
      paths: gives the files' paths from the folder.
      read: gives the bytes of one, or its first `MAX_FILE_BYTES` + 1.
      folder: where they are, for messages.
    """

    @functools.cache
    def found() -> tuple[Mapping[str, str], Sequence[str]]:
        texts: dict[str, str] = {}
        others: list[str] = []
        for number, path in enumerate(paths()):
            if number >= MAX_FILES:
                raise TemplateError(f"{folder}: more than {MAX_FILES} files; take a folder of wildcards alone")
            if has_companion(path):
                continue
            if path.lower().endswith(_ENDING):
                other = texts.setdefault(wildcard_name(path), path)
                if other != path:
                    raise TemplateError(f"{folder}: {other} and {path} have one name; rename one of them")
            elif path.lower().endswith(_OTHER_ENDINGS):
                others.append(path)
        return texts, others

    def lines(name: str) -> tuple[str, ...]:
        path = found()[0][name]
        try:
            return wildcard_lines(read(path), f"{folder}/{path}")
        except OSError as error:
            raise TemplateError(f"{folder}/{path} can't be read: {error}") from error

    return Wildcards(lambda: found()[0], lines, folder, lambda: found()[1])


def files_in(folder: str | Path) -> Iterator[str]:
    """The paths from a local folder of all files at any depth, as `files_under` lists them."""
    return (file.relative_to(folder).as_posix() for file in files_under(Path(folder)))


def wildcard_name(path: str) -> str:
    """The name of a wildcard by its file's path from the folder: `animals/cats.txt` is "animals/cats".

    Accents are composed, and so are those of the names that are looked for.
    """
    return plain(str(PurePosixPath(path).with_suffix("")))


def wildcard_lines(data: bytes, path: str) -> tuple[str, ...]:
    """The lines of a file of wildcards; raises `TemplateError` if it is too long, or not UTF-8."""
    if len(data) > MAX_FILE_BYTES:
        raise TemplateError(f"{path} has more than {MAX_FILE_BYTES} bytes; cut it into several files")
    try:
        return tuple(data.decode("utf-8-sig").split("\n"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TemplateError(f"{path}, line {line}: not UTF-8; save the file so") from None


class Pattern:
    """A name with `*` (letters within a folder), `**` (through folders), `?` (one letter) and `[abc]` (one of these).

    It is read letter by letter, with all its beginnings that fit so far as bits of a number: no name takes long,
    whatever the pattern. (A regular expression tries all ways to share out the letters among asterisks.)
    """

    def __init__(self, text: str) -> None:
        steps: list[str] = []
        for step in _STEP.findall(text):
            folders = step.startswith("**") and step.endswith("/")
            # Folders are two steps: whether there are any, and the letters of their names.
            steps += ["maybe", "**/"] if folders else ["**" if step.startswith("**") else step]
        self._steps = steps
        self._maybe = sum((step == "maybe") << place for place, step in enumerate(steps))
        self._empty = sum((step in ("*", "**")) << place for place, step in enumerate(steps))
        self._taken: dict[str, tuple[int, int]] = {}

    def fits(self, name: str) -> bool:
        """Whether the pattern is that of a whole name."""
        places = self._reached(1)
        for letter in name:
            if letter not in self._taken:
                self._taken[letter] = self._taking(letter)
            stays, goes = self._taken[letter]
            places = self._reached((places & stays) | ((places & goes) << 1))
        return bool(places >> len(self._steps))

    def _taking(self, letter: str) -> tuple[int, int]:
        """The steps that take a letter and may take more, and those that are over with it."""
        stays = sum((step[:2] == "**" or (step == "*" and letter != "/")) << at for at, step in enumerate(self._steps))
        goes = sum(_is_over(step, letter) << at for at, step in enumerate(self._steps))
        return stays, goes

    def _reached(self, places: int) -> int:
        """Also the places behind steps that may stand for nothing; of such there are no three in a row."""
        places |= (places & self._maybe) << 1 | (places & self._maybe) << 2
        return places | (places & self._empty) << 1


def _is_over(step: str, letter: str) -> bool:
    if step == "**/":
        return letter == "/"
    if letter == "/" or step in ("*", "**", "maybe"):
        return letter == step
    return step in (letter, "?") or (len(step) > 2 and fnmatch.fnmatchcase(letter, step))


_STEP = re.compile(r"(?:\*\*+/)+|\*\*+|\*|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)


# --- How much there is in a template ---


class _Size(NamedTuple):
    """How deep it is, of how many pieces a result may be put together, and how many results there are."""

    depth: int
    pieces: int
    results: int


class _Sizes(NamedTuple):
    """Of each line of a wildcard, and of a choice of one."""

    lines: Sequence[_Size]
    one: _Size


def size_of(parts: Iterable[Part], wildcards: Wildcards, path: tuple[str, ...] = (), level: int = 0) -> _Size:
    """Measures parts that stand so many levels deep within the wildcards of `path`; reads all the files they need."""
    depth, pieces, results = 0, 1, 1
    for part in parts:
        if isinstance(part, str):
            pieces += 1
            continue
        if level == MAX_DEPTH:
            raise _too_deep()
        if isinstance(part, Reference):
            size = wildcards.sizes(part, path, level + 1).one
        else:
            size = _size_of_choice(part, wildcards, path, level + 1)
        if level + size.depth > MAX_DEPTH:
            raise _too_deep()
        depth, pieces, results = max(depth, size.depth), pieces + size.pieces, min(MANY, results * size.results)
    if pieces > MAX_PIECES:
        raise TemplateError(f"a result may be put together of more than {MAX_PIECES} pieces; make it smaller")
    return _Size(depth, pieces, results)


def _too_deep() -> TemplateError:
    return TemplateError(f"braces and wildcards within each other, more than {MAX_DEPTH} deep; make them flatter")


def _size_of_choice(choice: Choice, wildcards: Wildcards, path: tuple[str, ...], level: int) -> _Size:
    lines = lines_of(choice)
    if lines is None:
        sizes: Sequence[_Size] = [size_of(option.parts, wildcards, path, level) for option in choice.options]
    else:
        sizes = wildcards.sizes(lines, path, level).lines
        check_number(choice, len(sizes))
    most = len(sizes) if choice.most is None else choice.most
    return _Size(
        1 + max(size.depth for size in sizes),
        1 + most * max(size.pieces for size in sizes),
        _arrangements([size.results for size in sizes], choice.least, most),
    )


def _arrangements(counts: Sequence[int], least: int, most: int) -> int:
    """Ways to put `least` to `most` of the options in a row, each option in one of its `counts` texts; up to `MANY`."""
    total = 0
    for number in range(least, most + 1):
        # More factors make it no smaller.
        if total >= MANY or math.perm(len(counts), min(number, 20)) >= MANY:
            return MANY
        if len(set(counts)) == 1:
            total += math.perm(len(counts), number) * counts[0] ** number
            continue
        # Elementary symmetric polynomials: ways to take so many, whatever their order.
        ways = [1] + [0] * number
        for count in counts:
            for taken in range(number, 0, -1):
                ways[taken] = min(MANY, ways[taken] + ways[taken - 1] * count)
        total += math.factorial(number) * ways[number]
    return min(MANY, total)


def count(template: Template, wildcards: Wildcards = NO_WILDCARDS) -> int:
    """How many results `combinations` gives; `MANY` stands for that many or more.

    Raises:
      TemplateError: for a wildcard that is missing, empty or within itself, for lines that are no templates, and for
        what is too deep or too large. Lines that a choice might not have taken are looked at too.
    """
    return size_of(template.parts, wildcards).results
