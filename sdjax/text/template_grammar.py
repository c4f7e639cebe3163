r"""How prompt templates are read: one text that stands for many.

`{a|b}` is one of several texts, `{2$$a|b|c}` two different ones, `{1-3$$ and $$a|b|c}` one to three joined with
" and ", `{3::a|b}` weighs them, and `__name__` is a line of the file `name.txt` in a folder of wildcards. The notation
is that of the dynamicprompts package, without its variables, wrappers and marks of sampling, which are errors here.

`#` begins a comment, up to the end of its line, at the beginning of the text or a line and behind a space, a brace or a
bar. It is a letter elsewhere, and in a text of one line that has no other sign of this notation.

What AUTOMATIC1111's grammar means by brackets and backslashes passes as it is: a bar outside of braces or within
square brackets that open and close in one option belongs to the prompt, and of all escapes only those of this notation
are undone (`\{`, `\}`, `\__`, `\#`, and within braces `\|` and `\::`).
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# Letters of a result; as many as a job's prompt may have.
MAX_LETTERS = 100_000
# Braces in braces and wildcards in wildcards: far more than anyone reads, and little enough to recurse over.
MAX_DEPTH = 50

# Letters of a template, and its pieces (braces, bars, names and what is between): far beyond any, read within a second.
MAX_TEMPLATE_LETTERS, MAX_SIGNS = 1_000_000, 30_000

_DEFAULT_JOINER = ", "
# Of a weight, before and after its point.
_WEIGHT_DIGITS = 9
WEIGHT_OF_ONE = 10**_WEIGHT_DIGITS
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


_SPECIAL = re.compile(r"\\__|\\::|\\.|[{}|\[\]#]|\$\{|\$\$|_{2,}", re.DOTALL)
# Up to the first dollars; what it is, is looked at then.
_HEAD = re.compile(r"\{([^${}|]*)\$\$")
_JOINER = re.compile(r"([^${}]*)\$\$")
_COUNT = re.compile(r"([0-9]{1,9})|([0-9]{0,9})-([0-9]{0,9})")
_WEIGHT = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
_VARIABLE = re.compile(r"\$\{\s*[A-Za-z_][\w-]*\s*[?:=}]")
# Controls, signs that turn the direction of a text, and halves of pairs: no message can name such a file.
_UNPRINTABLE = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
# A wildcard's mark and name. It begins with a letter or such a sign, so emoticons such as ^__^ and >__< name nothing.
_NAME = re.compile(rf"([{_MARKS}]?)((?:[^\W_]|[-.'&+/*?!(\[\\])[^{{}}|#$<>^\"{_UNPRINTABLE}]*)(?<! )")
# What dynamicprompts reads and this module does not: names that are put together, and parameters.
_PUT_IN = re.compile(r"\$?\{[^{}]*\}")
_PARAMETERS = re.compile(r"\([^()=]*=[^()]*\)\s*")
# What stands before underscores that open a name, and behind those that close one.
_BEFORE_NAME, _BEHIND_NAME = " \t\n,([{|", " \t\n,)]}|"


def _tokens(text: str) -> Iterator[_Token]:
    place, escaped = 0, False  # whether the last underscores were
    while found := _SPECIAL.search(text, place):
        start, mark = found.start(), found[0]
        if start > place:
            before = text[place:start]
            yield _Token("text", place + 1, before.rstrip(" \t") if _is_comment(text, start) else before)
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
            if not named and not escaped:
                _check_plain(text, opening)
            escaped = False
            if not named and len(mark) == 4:
                raise TemplateError("a wildcard without a name; write \\____ for plain underscores", start + 1)
            yield _Token("text", start + 1, mark[:-2] if named else mark)
            if named:
                name, place = named
                yield _Token("name", opening + 1, name)
        elif _is_comment(text, start):
            place = _end_of_comment(text, start)
        elif mark == "#":
            yield _Token("#", start + 1, mark)
        elif mark in (r"\{", r"\}", r"\__", r"\#"):
            escaped = escaped or mark == r"\__"
            yield _Token("text", start + 1, mark[1:])
        elif mark in ("}", "|", "[", "]", "$$", r"\|", r"\::"):
            yield _Token(mark, start + 1, mark)
        else:  # an escape of another grammar
            yield _Token("text", start + 1, mark)
    if place < len(text):
        yield _Token("text", place + 1, text[place:])


def _is_comment(text: str, start: int) -> bool:
    return text[start] == "#" and (start == 0 or text[start - 1].isspace() or text[start - 1] in "{|}")


def _end_of_comment(text: str, start: int) -> int:
    """Where the text goes on: with the end of the line, or behind it if nothing but the comment stands in the line."""
    end = text.find("\n", start)
    if end < 0:
        return len(text)
    before = text.rfind("\n", 0, start) + 1
    return end if text[before:start].strip() else end + 1


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
    if head and _is_wrapper(text, start):
        raise _wrapper(start)
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


def _is_wrapper(text: str, start: int) -> bool:
    return text[start - 1 : start] == "%" and text[start - 2 : start - 1] != "\\"


def _wrapper(start: int) -> TemplateError:
    return TemplateError(
        "wrappers such as %{... $$ ...} are not supported; write the words around the braces, as in a {b|c} d", start
    )


def _named(text: str, start: int) -> tuple[str, int] | None:
    """The name of the wildcard that begins here, and where it ends; None if the underscores are plain."""
    stop = text.find("__", start + 2)
    inside = text[start + 2 : stop] if stop >= 0 else ""
    found = None if inside.endswith("\\") else _NAME.fullmatch(inside)
    if not found:
        if "{" in inside and _NAME.fullmatch(_PUT_IN.sub("x", inside)):
            raise _put_together(start)
        return None
    mark, name = found.groups()
    if mark:
        raise TemplateError(
            f"the mark {mark} of a wildcard is not supported: whether one or all lines are taken is said for the whole "
            f"row; write __{name[:60]}__",
            start + 1,
        )
    if _PARAMETERS.search(name):
        raise _put_together(start)
    if any(part in ("", ".", "..") for part in re.sub(r"\\+", "/", name).split("/")):
        raise TemplateError(
            f"{name[:60]!r} is no name of a wildcard: it goes from the folder down, such as __animals/cats__", start + 1
        )
    return name, stop + 2


def _check_plain(text: str, start: int) -> None:
    """Raises for underscores that look as if they were to open or close a name, though they do not."""
    before, behind = text[start - 1 : start] or " ", text[start + 2 : start + 3] or " "
    if before in _BEFORE_NAME and behind.isalnum():
        raise TemplateError(
            "these __ open the name of a wildcard that is never closed (it stands in one line, without {}|#$<>^ and "
            "quotes in it); add __ behind it, or write \\__ for plain underscores",
            start + 1,
        )
    if before.isalnum() and behind in _BEHIND_NAME:
        raise TemplateError(
            "these __ close no name of a wildcard; add __ before it, or write \\__ for plain underscores", start + 1
        )


def _put_together(start: int) -> TemplateError:
    return TemplateError(
        "names of wildcards that are put together, and parameters of wildcards, are not supported; write "
        "{__a__|__b__}, or \\__ for plain underscores",
        start + 1,
    )


# --- From tokens to a template ---


class _Braces:
    """Braces that are not closed yet, or the whole text around them."""

    def __init__(self, token: _Token | None) -> None:
        self.token = token
        self.options: list[Option] = []
        self.squares = 0
        self.weight = WEIGHT_OF_ONE
        self.parts: list[Part] = []
        self.may_weigh = token is not None

    def add(self, part: Part) -> None:
        self.parts.append(part)
        # Of what stands before a weight, only blanks, and comments between them.
        self.may_weigh = self.may_weigh and isinstance(part, str) and not part.strip()

    def end_option(self) -> None:
        parts: list[Part] = []
        for is_text, group in itertools.groupby(self.parts, lambda part: isinstance(part, str)):
            pieces = list(group)
            parts += ["".join(map(str, pieces))] if is_text else pieces
        if self.token is not None:
            parts = _without_line_breaks_around(parts)
        self.options.append(Option(self.weight, tuple(part for part in parts if part != "")))
        self.weight, self.parts, self.may_weigh = WEIGHT_OF_ONE, [], True

    def choice(self) -> Choice:
        """All that is within the braces, which are closed now."""
        self.end_option()
        assert self.token is not None
        position, (least, most, joiner) = self.token.position, self.token.head
        if self.options == [Option(WEIGHT_OF_ONE, ())]:
            raise TemplateError(r"nothing stands in the braces; write \{\} for plain ones", position)
        options = tuple(option for option in self.options if option.weight)
        if not options:
            raise TemplateError("all weights are 0; leave one above it", position)
        if (least, most) != (1, 1):
            options = _different(options)
        choice = Choice(options, least, most, joiner, position)
        if lines_of(choice) is None:
            check_number(choice, len(options))
        return choice


def _without_line_breaks_around(parts: Sequence[Part]) -> list[Part]:
    """An option whose lines are parted from bars and braces for the eye: blanks with a line break go."""
    found = list(parts)
    if found and isinstance(found[0], str):
        stripped = found[0].lstrip()
        found[0] = stripped if "\n" in found[0][: len(found[0]) - len(stripped)] else found[0]
    if found and isinstance(found[-1], str):
        stripped = found[-1].rstrip()
        found[-1] = stripped if "\n" in found[-1][len(stripped) :] else found[-1]
    return found


def _different(options: Sequence[Option]) -> tuple[Option, ...]:
    """Options of which several are taken: those that are written alike are one, with the weight of all."""
    weights: dict[object, int] = {}
    first: dict[object, Option] = {}
    for option in options:
        alike = _without_positions(option.parts)
        weights[alike] = weights.get(alike, 0) + option.weight
        first.setdefault(alike, option)
    return tuple(option._replace(weight=weights[alike]) for alike, option in first.items())


def _without_positions(parts: Sequence[Part]) -> object:
    """What makes parts equal wherever they stand."""
    return tuple(
        part
        if isinstance(part, str)
        else (part.name,)
        if isinstance(part, Reference)
        else (part.least, part.most, part.joiner, *((o.weight, _without_positions(o.parts)) for o in part.options))
        for part in parts
    )


def lines_of(choice: Choice) -> Reference | None:
    """The wildcard whose lines are the options, as in `{2$$__name__}`."""
    [first, *others] = choice.options
    [part] = first.parts if len(first.parts) == 1 else [None]
    return part if not others and isinstance(part, Reference) else None


def check_number(choice: Choice, number: int) -> None:
    """Raises `TemplateError` if there are fewer options than are asked for."""
    most = choice.least if choice.most is None else choice.most
    if most > number:
        raise TemplateError(f"{most} are asked for, but there are {number} to choose from", choice.position)


def has_template(text: str) -> bool:
    """Whether a text may be a template; what is none for sure need not be read as one."""
    return "{" in text or "}" in text or "__" in text or ("#" in text and "\n" in text)


def parse_template(text: str, *, comments: bool = False) -> Template:
    """Reads a template.

    Args:
      text: any string.
      comments: whether there may be some even if `has_template` sees nothing, as in the lines of wildcards.

    Raises:
      TemplateError: for braces that are not closed or never opened, that hold nothing or fewer options than they ask
        for, or are nested deeper than `MAX_DEPTH`, for names that no wildcard has, and for more than
        `MAX_TEMPLATE_LETTERS` or `MAX_SIGNS`.
    """
    if not comments and not has_template(text):
        return Template(text, (text,) if text else ())
    if len(text) > MAX_TEMPLATE_LETTERS:
        raise TemplateError(f"a template of {len(text)} letters; expected up to {MAX_TEMPLATE_LETTERS}")
    tokens = list(itertools.islice(_tokens(text), MAX_SIGNS + 1))
    if len(tokens) > MAX_SIGNS:
        pieces = "pieces: braces, bars, names and what is between"
        raise TemplateError(f"a template of more than {MAX_SIGNS} {pieces}; use wildcards")
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
        elif token.kind in (r"\|", r"\::") and inside:
            braces.add(token.kind[1:])
        elif token.kind == "#" and inside and "\n" in text:
            raise TemplateError(
                r"this # follows a letter; put a space before it if it begins a comment, or write \# if it does not",
                token.position,
            )
        elif token.kind == "$$" and inside:
            assert braces.token
            if _is_wrapper(text, braces.token.position - 1):
                raise _wrapper(braces.token.position - 1)
            raise TemplateError("$$ stands only behind how many are taken, as in {2$$a|b|c}", token.position)
        elif token.kind == "name":
            braces.add(Reference(token.text, token.position))
        else:
            if index in in_squares:
                braces.squares += 1 if token.kind == "[" else -1
            weighs = inside and token.kind == "text" and not braces.squares and "::" in token.text
            braces.add(_weighed(braces, token) if weighs else token.text)
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
    """The text behind a weight, which the option takes on."""
    weight, _, text = token.text.partition("::")
    weight = weight.strip()
    if not braces.may_weigh or not _WEIGHT.fullmatch(weight) or "::" in text:
        quoted = (token.text if len(token.text) <= 30 else token.text[:30] + "...").strip()
        raise TemplateError(
            f"{quoted!r} has :: in it, which stands behind a weight, a number from 0 on as in {{3::a|0.5::b}}; write "
            r"\:: for the signs themselves",
            token.position,
        )
    whole, _, fraction = weight.partition(".")
    if max(len(whole), len(fraction)) > _WEIGHT_DIGITS:
        raise TemplateError(
            f"the weight {weight[:20]} has too many digits; up to {_WEIGHT_DIGITS} before and behind the point",
            token.position,
        )
    braces.weight = int(whole + fraction.ljust(_WEIGHT_DIGITS, "0"))
    return text
