"""`sdjax inspect PATH`."""

import functools
from typing import Annotated

from typer import Argument

from pipelines.cli.command import Command, Pickled, print_facts


def inspect(
    path: Annotated[
        str,
        Argument(
            metavar="PATH", help="an image, any file of weights, a diffusers folder, a bundled model, or org/name"
        ),
    ],
    pickled: Pickled = False,
) -> Command:
    """What a model, an adapter or an image is."""
    return functools.partial(run, path, pickled)


def run(path: str, pickled: bool) -> int:
    """Prints what is known of it."""
    from pipelines import inspect

    print_facts(inspect.describe(path, pickled))
    return 0
