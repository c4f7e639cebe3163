"""What fields of a job have to do with each other."""

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

from sdjax.jobs.canonical import PIXEL_UPSCALERS, split
from sdjax.jobs.fields import Field, JobError
from sdjax.messages import quoted

# Values of fields by name, and the names of those that are not at their defaults.
Values = Mapping[str, Any]
Given = Set[str]


class Rule(NamedTuple):
    """A condition on several fields.

    name: of the rule.
    fields: on which it depends.
    check: raises `JobError` if these values break it.
    """

    name: str
    fields: frozenset[str]
    check: Callable[[Values, Given], None]


def check_rules(values: Values, given: Given) -> None:
    """Raises `JobError` if values break a rule of which all fields are among them."""
    for rule in RULES:
        if not rule.fields.isdisjoint(given) and values.keys() >= rule.fields:
            rule.check(values, given)


def check_needs(fields: Mapping[str, Field], values: Values, given: Given) -> None:
    """Raises `JobError` if a field is given without any of those of which it needs one beside it."""
    for name in given:
        needs = fields[name].needs
        if needs and given.isdisjoint(needs):
            raise JobError(f"{name} = {quoted(values[name])}: expected {either(needs)} with it")


def either(names: tuple[str, ...]) -> str:
    """The names as a text: "a", "a or b", "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def check_upscaler_options(values: Values, given: Given) -> None:
    """Raises `JobError` if options of diffusion models are given for an upscaler that is none."""
    for name in _DIFFUSION_OPTIONS:
        _check_no_option(name, values, given)


_DIFFUSION_OPTIONS = ("upscaler_steps", "upscaler_guidance_scale", "upscaler_noise_level")


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    if not condition:
        raise JobError(f"{name} = {quoted(found)}: expected {expected}")


def _check_no_option(name: str, values: Values, given: Given) -> None:
    expected = f"an upscaler with it that is a diffusion model, not {values['upscaler']}"
    _require(name not in given, name, values[name], expected)


def _guidance_interval(values: Values, given: Given) -> None:
    start, end = values["guidance_start"], values["guidance_end"]
    _require(start < end, "guidance_start", start, f"less than guidance_end, {end}")


def _one_for_each_controlnet(name: str) -> Callable[[Values, Given], None]:
    def check(values: Values, given: Given) -> None:
        nets, parts = len(split(values["controlnets"])), len(split(values[name]))
        expected = f"one for all, or one for each of the {nets} controlnets"
        _require(parts in (0, 1, nets), name, values[name], expected)

    return check


def _strength_of_an_image(values: Values, given: Given) -> None:
    of_the_second_pass = "strength" in given and "image" not in given and "hires_scale" in given
    expected = "image with it; hires_strength is that of the second pass"
    _require(not of_the_second_pass, "strength", values["strength"], expected)


def _factor_of_a_filter(values: Values, given: Given) -> None:
    has_one = values["upscaler"] not in PIXEL_UPSCALERS or "upscale_by" in given
    _require(has_one, "upscaler", values["upscaler"], "upscale_by with it")


def _no_option_of_a_filter(name: str) -> Callable[[Values, Given], None]:
    def check(values: Values, given: Given) -> None:
        if values["upscaler"] in PIXEL_UPSCALERS:
            _check_no_option(name, values, given)

    return check


def _rule(name: str, *fields: str, check: Callable[[Values, Given], None]) -> Rule:
    return Rule(name, frozenset(fields), check)


RULES = (
    _rule("guidance begins before it ends", "guidance_start", "guidance_end", check=_guidance_interval),
    *(
        _rule(f"one {name} for each ControlNet", name, "controlnets", check=_one_for_each_controlnet(name))
        for name in ("control_image", "control_preprocessor")
    ),
    _rule("strength is of an image", "strength", "image", "hires_scale", check=_strength_of_an_image),
    _rule("a filter has no factor of its own", "upscaler", "upscale_by", check=_factor_of_a_filter),
    *(
        _rule(f"a filter takes no {name}", "upscaler", name, check=_no_option_of_a_filter(name))
        for name in _DIFFUSION_OPTIONS
    ),
)
