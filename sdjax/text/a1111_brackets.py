"""What is wrong with the brackets of AUTOMATIC1111's prompts: unbalanced ones, weights and steps that are no number."""

import re

from sdjax.text.emphasis import BREAK, BREAK_WORD, ROUND, SPECIAL, SQUARE, WEIGHT_TOKEN, number_of
from sdjax.text.problems import shortened
from sdjax.text.prompt_editing import Groups, OpenBracket, step_of

_CLOSING = {"(": ")", "[": "]"}
_OPENING = {")": "(", "]": "["}
_COMMA_NUMBER = re.compile(r"\s*([+-]?\d+),(\d+)\s*")
_CHECK_TOKEN = re.compile(r"\\.|[()\[\]:|]|[^\\()\[\]:|]+|\\", re.DOTALL)


class _Open(OpenBracket):
    """A bracket that is open, with the `BREAK`s in it."""

    def __init__(self, sign: str, at: int) -> None:
        super().__init__(sign, at)
        self.breaks: list[int] = []


def bracket_problems(text: str, groups: Groups) -> list[tuple[int, str]]:
    """What is wrong with the brackets of a part: places, counted from 0, and messages."""
    problems: list[tuple[int, str]] = []
    stack: list[_Open] = []
    depth = {"(": 0, "[": 0}

    if not SPECIAL.search(text):
        return problems
    for match in _CHECK_TOKEN.finditer(text):
        token, at = match.group(), match.start()
        if token in ("(", "["):
            stack.append(_Open(token, at))
            depth[token] += 1
        elif token in _OPENING:
            sign = _OPENING[token]
            if not depth[sign]:
                problems.append(
                    (at, f"{token} closes nothing; open it with {sign}, or write \\{token} for the sign itself")
                )
                continue
            while stack[-1].sign != sign:
                depth[stack[-1].sign] -= 1
                problems.append(_never_closed(stack.pop()))
            frame = stack.pop()
            depth[sign] -= 1
            factor, problem = _closed(text, frame, at, groups)
            problems += problem
            if factor != 1:
                problems += [
                    (place, "a BREAK in weighted brackets is a word, not a break; close the brackets before it")
                    for place in frame.breaks
                ]
            elif stack:
                stack[-1].breaks += frame.breaks
        elif stack:
            if token == ":":
                stack[-1].colons.append(at)
            elif token == "|":
                stack[-1].pipes.append(at)
            elif BREAK.text in token:
                stack[-1].breaks += [at + found.start() for found in BREAK_WORD.finditer(token)]
    return sorted([*problems, *map(_never_closed, stack)])


def _never_closed(frame: _Open) -> tuple[int, str]:
    sign = frame.sign
    return frame.token, f"{sign} is never closed; close it with {_CLOSING[sign]}, or write \\{sign} for the sign itself"


def _closed(text: str, frame: _Open, end: int, groups: Groups) -> tuple[float, list[tuple[int, str]]]:
    """By how much a pair of brackets multiplies weights, and what is wrong with it."""
    if frame.sign == "(":
        if not frame.colons:
            return ROUND, []
        last = frame.colons[-1]
        match = WEIGHT_TOKEN.match(text, last)
        weight = number_of(match.group(1)) if match and match.group(1) and match.end() == end + 1 else None
        if weight is None:
            given = text[last + 1 : end]
            comma = _COMMA_NUMBER.fullmatch(given)
            hint = f"{comma[1]}.{comma[2]}" if comma else "a number like 1.2"
            return ROUND, [
                (last, f"the weight {shortened(given)} is no number; write {hint}, or \\( and \\) for the signs")
            ]
        return weight, []
    if frame.token in groups.read:
        return 1.0, []
    if not frame.colons and not frame.pipes:
        return SQUARE, []
    if groups.hindrance:
        reason = groups.hindrance
    elif frame.colons and frame.pipes:
        reason = "it has both : and |; write [before:after:step] or [one|other]"
    elif len(frame.colons) > 2:
        reason = "it has too many :; write [before:after:step]"
    elif frame.colons and step_of(text[frame.colons[-1] + 1 : end]) is None:
        reason = (
            f"{shortened(text[frame.colons[-1] + 1 : end])} is no step; write a number like 5, or a fraction like 0.5"
        )
    else:
        reason = "a bracket in it is not well formed"
    return SQUARE, [(frame.token, f"this [ ] does not switch: {reason}; for the signs themselves write \\[ and \\]")]
