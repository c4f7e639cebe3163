"""The ControlNets that a job names: `name:weight:start:end; name`."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sdjax.messages import quoted

MAX_WEIGHT = 10.0


class ControlError(ValueError):
    """A ControlNet is named in a way that can't be read."""


class Control(NamedTuple):
    """A ControlNet and how it acts: how strongly, and from which to which share of the steps (0 to 1)."""

    name: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def acts_in(self, step: Any, steps: int) -> Any:
        """Whether it acts in a step, or in each of some: as in diffusers, if that lies within as a whole."""
        return (step / steps >= self.start) & ((step + 1) / steps <= self.end)


def read_controls(text: str) -> tuple[Control, ...]:
    """ControlNets as a field of a job names them.

    Raises:
      ControlError: if it can't be read.
    """
    return tuple(_read(each.strip()) for each in text.split(";") if each.strip()) if text else ()


def to_text(controls: Sequence[Control]) -> str:
    """The form of `read_controls` in which equal ones are written alike."""
    return "; ".join(_written(control) for control in controls)


def _read(text: str) -> Control:
    name, *numbers = (part.strip() for part in text.split(":"))
    if not name or len(numbers) > 3:
        raise ControlError(f"{quoted(text)}: expected name:weight:start:end, the numbers may be left out")
    limits = (("weight", MAX_WEIGHT), ("start", 1.0), ("end", 1.0))
    control = Control(name, *(_number(*limit, number) for limit, number in zip(limits, numbers, strict=False)))
    if control.start >= control.end:
        raise ControlError(
            f"{quoted(text)}: it starts at {control.start:g} and ends at {control.end:g}; expected it later"
        )
    return control


def _number(what: str, most: float, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise ControlError(f"the {what} {quoted(text)}: expected a number from 0 to {most:g}")
    return number + 0.0


def _written(control: Control) -> str:
    numbers = list(control[1:])
    while numbers and numbers[-1] == Control._field_defaults[Control._fields[len(numbers)]]:
        numbers.pop()
    return ":".join([control.name, *(f"{int(each) if each.is_integer() else each}" for each in numbers)])
