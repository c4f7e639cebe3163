r"""Prompt templates: one text that stands for many.

`{a|b}` is one of several texts, `{2$$a|b|c}` two different ones, `{1-3$$ and $$a|b|c}` one to three joined with
" and ", `{3::a|b}` weighs them, and `__name__` is a line of the file `name.txt` in a folder of wildcards. The notation
is that of the dynamicprompts package, without its variables, wrappers and marks of sampling, which are errors here.

What AUTOMATIC1111's grammar means by brackets and backslashes passes as it is: a bar outside of braces or within
square brackets that open and close in one option belongs to the prompt, and of all escapes only those of this notation
are undone (`\{`, `\}`, `\__`, and `\|` within braces).
"""

import bisect
import difflib
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

# Letters of a result; as many as a job's prompt may have.
MAX_LETTERS = 100_000
# Braces in braces and wildcards in wildcards: far more than anyone reads, and little enough to recurse over.
MAX_DEPTH = 50
# Texts of which one result may be put together, so that wildcards that name each other twice can't go on for ever.
MAX_PIECES = 1_000_000
# From here on combinations are not counted any more.
MANY = 10**18

_DEFAULT_JOINER = ", "
# Of a weight, before and after its point.
_WEIGHT_DIGITS = 9
_WEIGHT_OF_ONE = 10**_WEIGHT_DIGITS
_MARKS = "~!@"


class TemplateError(ValueError):
    """A template that can't be read or resolved; the message says where, and what to do.

    Attributes:
      position: of the letter in the template, counted from 1; None if the trouble is in a file of wildcards.
    """

    def __init__(self, problem: str, position: int | None = None) -> None:
        super().__init__(problem if position is None else f"letter {position}: {problem}")
        self.position = position


# --- What a template is ---


class Reference(NamedTuple):
    """`__name__`; the name may hold `*` for any letters of a file's name and `**` for folders as well."""

    name: str
    position: int


class Option(NamedTuple):
    """One of the texts between bars, or a line of a wildcard and where it stands. Weights are whole numbers."""

    weight: int
    parts: "tuple[Part, ...]"
    place: str = ""


class Choice(NamedTuple):
    """Braces: from `least` to `most` of the options, in any order; None are all there are."""

    options: tuple[Option, ...]
    least: int
    most: int | None
    joiner: str
    position: int


Part = str | Choice | Reference


class Template(NamedTuple):
    """A text that was read: plain pieces, choices and references one after the other."""

    text: str
    parts: tuple[Part, ...]


# --- From letters to tokens ---


class _Token(NamedTuple):
    """`kind` is the letter itself for what has a meaning, `\\|` for an escaped bar, else "text", "name" or "$$"."""

    kind: str
    position: int
    text: str
    head: Any = None


_SPECIAL = re.compile(r"\\__|\\.|[{}|\[\]]|\$\{|\$\$|_{2,}", re.DOTALL)
# Up to the first dollars; what it is, is looked at then.
_HEAD = re.compile(r"\{([^${}|]*)\$\$")
_JOINER = re.compile(r"([^${}]*)\$\$")
_COUNT = re.compile(r"([0-9]{1,9})|([0-9]{0,9})-([0-9]{0,9})")
_WEIGHT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)::")
_VARIABLE = re.compile(r"\$\{\s*[A-Za-z_][\w-]*\s*[?:=}]")
_IN_NAME = r"(?:(?!__)[-\w./*+'& ])"
# Not within emoticons such as ^__^ and >__<.
_NAME = re.compile(rf"__([{_MARKS}]?)((?![_ ]){_IN_NAME}+)(?<! )__")
# What dynamicprompts reads and this module does not: names that are put together, and parameters.
_NO_NAME = re.compile(rf"__{_IN_NAME}*(?:\{{[^{{}}]*\}}|\([^()=]*=[^()]*\)){_IN_NAME}*__")


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while found := _SPECIAL.search(text, place):
        start, mark = found.start(), found[0]
        if start > place:
            yield _Token("text", place + 1, text[place:start])
        place = found.end()
        if mark == "{":
            token, place = _opening(text, start)
            yield token
        elif mark == "${":
            if _VARIABLE.match(text, start):
                raise TemplateError("variables such as ${name=...} are not supported; use a wildcard", start + 1)
            yield _Token("text", start + 1, "$")
            place = start + 1
        elif mark.startswith("__"):
            # Of many underscores the last two open the name.
            opening = place - 2
            named = _named(text, opening)
            if not named and len(mark) == 4:
                raise TemplateError("a wildcard without a name; write \\____ for plain underscores", start + 1)
            yield _Token("text", start + 1, mark[:-2] if named else mark)
            if named:
                name, place = named
                yield _Token("name", opening + 1, name)
        elif mark in (r"\{", r"\}", r"\__"):
            yield _Token("text", start + 1, mark[1:])
        elif mark in ("}", "|", "[", "]", "$$", r"\|"):
            yield _Token(mark, start + 1, mark)
        else:  # an escape of another grammar
            yield _Token("text", start + 1, mark)
    if place < len(text):
        yield _Token("text", place + 1, text[place:])


def _opening(text: str, start: int) -> tuple[_Token, int]:
    """The token of a brace with its count and joiner, and where it ends."""
    position = start + 1
    if text[start + 1 : start + 2] in tuple(_MARKS):
        raise TemplateError(
            f"the mark {text[start + 1]} after a brace is not supported: whether one or all are taken is said for the "
            "whole row; for a plain letter put a space before it",
            position + 1,
        )
    head = _HEAD.match(text, start)
    if not head:
        return _Token("{", position, "{", (1, 1, _DEFAULT_JOINER)), start + 1
    count = _COUNT.fullmatch(head[1].strip())
    if not count or count[0] == "-":
        raise TemplateError(
            f"{head[1][:20]!r} stands before $$; expected how many are taken, such as 2, 1-3 or 2-", position + 1
        )
    least = int(count[1] or count[2] or 1)
    most = least if count[1] else int(count[3]) if count[3] else None
    if most is not None and least > most:
        raise TemplateError(f"{count[0]} takes {least} at least and {most} at most; turn them round", position + 1)
    joiner = _JOINER.match(text, head.end())
    end = joiner.end() if joiner else head.end()
    return _Token("{", position, "{", (least, most, joiner[1] if joiner else _DEFAULT_JOINER)), end


def _named(text: str, start: int) -> tuple[str, int] | None:
    """The name of the wildcard that begins here, and where it ends; None if the underscores are plain."""
    found = _NAME.match(text, start)
    if not found:
        if _NO_NAME.match(text, start):
            raise TemplateError(
                "names of wildcards that are put together, and parameters of wildcards, are not supported; write "
                "{__a__|__b__}, or \\__ for plain underscores",
                start + 1,
            )
        return None
    mark, name = found.groups()
    if mark:
        raise TemplateError(
            f"the mark {mark} of a wildcard is not supported: whether one or all lines are taken is said for the whole "
            f"row; write __{name}__",
            start + 1,
        )
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise TemplateError(
            f"{name!r} is no name of a wildcard: it goes from the folder down, such as __animals/cats__", start + 1
        )
    return name, found.end()


# --- From tokens to a template ---


class _Braces:
    """Braces that are not closed yet, or the whole text around them."""

    def __init__(self, token: _Token | None) -> None:
        self.token = token
        self.options: list[Option] = []
        self.squares = 0
        self.weight = _WEIGHT_OF_ONE
        self.parts: list[Part] = []
        self.may_weigh = token is not None

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.may_weigh = False

    def end_option(self) -> None:
        parts: list[Part] = []
        for is_text, group in itertools.groupby(self.parts, lambda part: isinstance(part, str)):
            pieces = list(group)
            parts += ["".join(map(str, pieces))] if is_text else pieces
        self.options.append(Option(self.weight, tuple(part for part in parts if part != "")))
        self.weight, self.parts, self.may_weigh = _WEIGHT_OF_ONE, [], True

    def choice(self) -> Choice:
        """All that is within the braces, which are closed now."""
        self.end_option()
        assert self.token is not None
        position, (least, most, joiner) = self.token.position, self.token.head
        if self.options == [Option(_WEIGHT_OF_ONE, ())]:
            raise TemplateError(r"nothing stands in the braces; write \{\} for plain ones", position)
        options = tuple(option for option in self.options if option.weight)
        if not options:
            raise TemplateError("all weights are 0; leave one above it", position)
        choice = Choice(options, least, most, joiner, position)
        if _lines_of(choice) is None:
            _check_number(choice, len(options))
        return choice


def _lines_of(choice: Choice) -> Reference | None:
    """The wildcard whose lines are the options, as in `{2$$__name__}`."""
    [first, *others] = choice.options
    [part] = first.parts if len(first.parts) == 1 else [None]
    return part if not others and isinstance(part, Reference) else None


def _check_number(choice: Choice, number: int) -> None:
    most = choice.least if choice.most is None else choice.most
    if most > number:
        raise TemplateError(f"{most} are asked for, but there are {number} to choose from", choice.position)


def has_template(text: str) -> bool:
    """Whether a text may be a template; what is none for sure need not be read as one."""
    return "{" in text or "}" in text or "__" in text


def parse_template(text: str) -> Template:
    """Reads a template.

    Raises:
      TemplateError: for braces that are not closed or never opened, that hold nothing or fewer options than they ask
        for, or are nested deeper than `MAX_DEPTH`, and for names that no wildcard has.
    """
    tokens = list(_tokens(text))
    in_squares = _matched_squares(tokens)
    open_braces = [_Braces(None)]
    for index, token in enumerate(tokens):
        braces = open_braces[-1]
        inside = len(open_braces) > 1
        if token.kind == "{":
            if len(open_braces) > MAX_DEPTH:
                raise TemplateError(f"braces in braces, more than {MAX_DEPTH} deep; use wildcards", token.position)
            open_braces.append(_Braces(token))
        elif token.kind == "}":
            if not inside:
                raise TemplateError(
                    r"this } closes no brace; add a { before it, or write \} for a plain one", token.position
                )
            open_braces.pop()
            open_braces[-1].add(braces.choice())
        elif token.kind == "|" and inside and not braces.squares:
            braces.end_option()
        elif token.kind == r"\|" and inside:
            braces.add("|")
        elif token.kind == "$$" and inside:
            raise TemplateError("$$ stands only behind how many are taken, as in {2$$a|b|c}", token.position)
        elif token.kind == "name":
            braces.add(Reference(token.text, token.position))
        else:
            if index in in_squares:
                braces.squares += 1 if token.kind == "[" else -1
            braces.add(_weighed(braces, token) if braces.may_weigh and token.kind == "text" else token.text)
    if len(open_braces) > 1:
        unclosed = open_braces[-1].token
        assert unclosed
        raise TemplateError(r"this { is never closed; add a }, or write \{ for a plain one", unclosed.position)
    open_braces[0].end_option()
    return Template(text, open_braces[0].options[0].parts)


def _matched_squares(tokens: Sequence[_Token]) -> set[int]:
    """Which tokens are square brackets that open and close within the same braces."""
    matched: set[int] = set()
    waiting: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind in ("[", "{"):
            waiting.append(index)
        elif token.kind == "]" and waiting and tokens[waiting[-1]].kind == "[":
            matched |= {waiting.pop(), index}
        elif token.kind == "}":
            while waiting and tokens[waiting.pop()].kind == "[":
                pass
    return matched


def _weighed(braces: _Braces, token: _Token) -> str:
    """The text behind a weight, which the option takes on; the whole text if there is none."""
    found = _WEIGHT.match(token.text)
    if not found:
        return token.text
    whole, _, fraction = found[1].partition(".")
    if max(len(whole), len(fraction)) > _WEIGHT_DIGITS:
        raise TemplateError(
            f"the weight {found[1][:20]} has too many digits; up to {_WEIGHT_DIGITS} before and behind the point",
            token.position,
        )
    braces.weight = int(whole + fraction.ljust(_WEIGHT_DIGITS, "0"))
    return token.text[found.end() :]


# --- Wildcards ---


class Wildcards:
    """What may stand in the place of `__name__`: the lines of files, each read once, when it is needed.

    Lines that are blank or begin with `#` are passed over, and of equal lines the first counts. A line may be a
    template itself.
    """

    def __init__(
        self, names: Callable[[], Iterable[str]], read: Callable[[str], Iterable[str]], folder: str | None
    ) -> None:
        """Takes the ways to the files.

        Args:
          names: gives the names of all wildcards, such as "animals/cats".
          read: gives the lines of one as they are in the file.
          folder: where they are, for messages; None if there is no folder.
        """
        self._list, self._read, self._folder = names, read, folder
        self._options: dict[str, tuple[Option, ...]] = {}
        self._sizes: dict[str, _Sizes] = {}

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all wildcards, sorted."""
        return tuple(sorted(self._list()))

    def options(self, reference: Reference) -> tuple[Option, ...]:
        """The lines for a reference, in the order of the files' names.

        Raises:
          TemplateError: if there is no such wildcard, none of its lines counts, or one can't be read.
        """
        name = reference.name
        if name not in self._options:
            pattern = _pattern(name)
            files = [file for file in self.names if pattern.fullmatch(file)] if "*" in name else [name]
            if not files or files[0] not in self.names:
                raise TemplateError(self._missing(name), reference.position)
            lines: dict[str, Option] = {}
            for file in files:
                for line, option in self._lines(file):
                    lines.setdefault(line, option)
            if not lines:
                raise TemplateError(f"there is no line in the wildcard {name!r}; fill it", reference.position)
            self._options[name] = tuple(lines.values())
        return self._options[name]

    def _lines(self, name: str) -> list[tuple[str, Option]]:
        found = []
        for number, raw in enumerate(self._read(name), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            place = f"wildcard {name!r}, line {number}"
            try:
                parts = parse_template(line).parts if has_template(line) else (line,)
            except TemplateError as error:
                raise TemplateError(f"{place}, {error}") from None
            found.append((line, Option(1, parts, place)))
        return found

    def _missing(self, name: str) -> str:
        plain = r"write \__ for plain underscores"
        if self._folder is None:
            return f"__{name}__ is a wildcard, but no folder of wildcards is given; give one, or {plain}"
        below = [known for known in self.names if known.endswith(f"/{name}")]
        by_letters = {known.lower(): known for known in self.names}
        near = [by_letters[found] for found in difflib.get_close_matches(name.lower(), by_letters, 3, 0.6)]
        suggested = list(dict.fromkeys(below[:3] + near))
        hint = f" (did you mean {' or '.join(f'__{known}__' for known in suggested)}?)" if suggested else ""
        what = "no wildcard fits" if "*" in name else "there is no wildcard"
        return f"{what} {name!r} in {self._folder}{hint}; add a file {name}.txt, or {plain}"

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
            return _size_of(line.parts, self, path, level)
        except TemplateError as error:
            if error.position is None:  # it tells a place already, or is about all of them
                raise
            raise TemplateError(f"{line.place}, {error}") from None


NO_WILDCARDS = Wildcards(tuple, lambda name: (), None)


def wildcards_in(folder: Path) -> Wildcards:
    """The text files of a local folder and the folders in it.

    Raises:
      TemplateError: if there is no such folder; later, for a file that is not UTF-8.
    """
    if not folder.is_dir():
        raise TemplateError(f"{folder}: there is no such folder of wildcards")

    def names() -> Iterator[str]:
        return (wildcard_name(path.relative_to(folder).as_posix()) for path in folder.rglob("*.txt"))

    def read(name: str) -> tuple[str, ...]:
        path = folder / f"{name}.txt"
        return wildcard_lines(path.read_bytes(), str(path))

    return Wildcards(names, read, str(folder))


def wildcard_name(path: str) -> str:
    """The name of a wildcard by its file's path from the folder: `animals/cats.txt` is "animals/cats"."""
    return str(PurePosixPath(path).with_suffix(""))


def wildcard_lines(data: bytes, path: str) -> tuple[str, ...]:
    """The lines of a file of wildcards; raises `TemplateError` if they are not UTF-8."""
    try:
        return tuple(data.decode("utf-8-sig").split("\n"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TemplateError(f"{path}, line {line}: not UTF-8; save the file so") from None


def _pattern(name: str) -> re.Pattern[str]:
    """What a name with asterisks fits: one stays within a folder, two go through folders."""
    pieces = re.split(r"(\*\*+/|\*+)", name)
    meanings = {"*": "[^/]*", "**": ".*", "**/": "(?:.*/)?"}
    return re.compile("".join(meanings.get(re.sub(r"\*\*+", "**", piece), re.escape(piece)) for piece in pieces))


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


def _size_of(parts: Iterable[Part], wildcards: Wildcards, path: tuple[str, ...] = (), level: int = 0) -> _Size:
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
    lines = _lines_of(choice)
    if lines is None:
        sizes: Sequence[_Size] = [_size_of(option.parts, wildcards, path, level) for option in choice.options]
    else:
        sizes = wildcards.sizes(lines, path, level).lines
        _check_number(choice, len(sizes))
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
    return _size_of(template.parts, wildcards).results


# --- One result ---


class _Draws:
    """Whole numbers that follow from what they are made of alone, on any machine and in any version of Python."""

    def __init__(self, *sources: object) -> None:
        text = json.dumps(["sdjax template", *sources])
        self._start = hashlib.sha256(text.encode())
        self._number = 0

    def below(self, limit: int) -> int:
        """One of 0 to `limit` - 1; 256 bits make their small bias vanish."""
        self._number += 1
        state = self._start.copy()
        state.update(b"%d" % self._number)
        return int.from_bytes(state.digest()) % limit


def choose(template: Template, wildcards: Wildcards, seed: int, label: str = "") -> str:
    """One result, decided by the template, the wildcards, the seed and the label, and by nothing else.

    Args:
      template: from `parse_template`.
      wildcards: the files.
      seed: any whole number.
      label: tells apart the choices of templates that share a seed, such as a prompt and a negative prompt.

    Raises:
      TemplateError: as `count`; also if the result is longer than `MAX_LETTERS`.
    """
    _size_of(template.parts, wildcards)
    return _chosen(template.parts, wildcards, _Draws(seed, label, template.text))


def _chosen(parts: Iterable[Part], wildcards: Wildcards, draws: _Draws) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if isinstance(part, Reference):
            part = Choice((Option(_WEIGHT_OF_ONE, (part,)),), 1, 1, "", part.position)
        options = _options(part, wildcards)
        most = len(options) if part.most is None else part.most
        number = part.least + draws.below(most - part.least + 1)
        if _lines_of(part):
            taken = _drawn_evenly(len(options), number, draws)
        else:
            taken = _drawn([option.weight for option in options], number, draws)
        texts.append(_joined([_chosen(options[index].parts, wildcards, draws) for index in taken], part.joiner))
    return _joined(texts)


def _options(choice: Choice, wildcards: Wildcards) -> tuple[Option, ...]:
    lines = _lines_of(choice)
    return choice.options if lines is None else wildcards.options(lines)


def _drawn(weights: Sequence[int], number: int, draws: _Draws) -> list[int]:
    """Different indices, each drawn by its weight among those that are left."""
    left = list(range(len(weights)))
    taken = []
    for _ in range(number):
        up_to = list(itertools.accumulate(weights[index] for index in left))
        taken.append(left.pop(bisect.bisect_right(up_to, draws.below(up_to[-1]))))
    return taken


def _drawn_evenly(count: int, number: int, draws: _Draws) -> list[int]:
    """The same for equal weights, without a look at all of them: wildcards are long."""
    moved: dict[int, int] = {}
    taken = []
    for last in range(count - 1, count - 1 - number, -1):
        index = draws.below(last + 1)
        taken.append(moved.get(index, index))
        moved[index] = moved.get(last, last)
    return taken


def _joined(texts: Sequence[str], joiner: str = "") -> str:
    letters = sum(map(len, texts)) + len(joiner) * (len(texts) - 1)
    if letters > MAX_LETTERS:
        raise TemplateError(f"a result has {letters} letters; expected up to {MAX_LETTERS}")
    return joiner.join(texts)


# --- All results ---


def combinations(template: Template, wildcards: Wildcards = NO_WILDCARDS) -> Iterator[str]:
    """All results one after the other, the last choice in the text varying fastest.

    A choice of several gives every order of the options, few before many. Weights have no say. Results that come about
    in two ways are there twice.

    Raises:
      TemplateError: as `count`, at once; while iterating, for a result longer than `MAX_LETTERS`.
    """
    _size_of(template.parts, wildcards)
    return _results(template.parts, wildcards)


def _results(parts: Iterable[Part], wildcards: Wildcards) -> Iterator[str]:
    return map(_joined, _product([functools.partial(_results_of, part, wildcards) for part in parts]))


def _results_of(part: Part, wildcards: Wildcards) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, Reference):
        for option in wildcards.options(part):
            yield from _results(option.parts, wildcards)
    else:
        options = _options(part, wildcards)
        most = len(options) if part.most is None else part.most
        for number in range(part.least, most + 1):
            for taken in itertools.permutations(options, number):
                makers = [functools.partial(_results, option.parts, wildcards) for option in taken]
                for texts in _product(makers):
                    yield _joined(texts, part.joiner)


def _product(makers: Sequence[Callable[[], Iterator[str]]]) -> Iterator[list[str]]:
    """As `itertools.product`, which would hold all texts of each factor, where this begins its iterator anew."""
    running: list[Iterator[str]] = []
    texts: list[str] = []
    while True:
        while len(running) < len(makers):
            running.append(makers[len(running)]())
            texts.append(next(running[-1]))
        yield list(texts)
        while running:
            following = next(running[-1], None)
            if following is not None:
                texts[-1] = following
                break
            running.pop()
            texts.pop()
        else:
            return
