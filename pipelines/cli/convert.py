"""`sdjax convert IN OUT`."""

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from pipelines import stopping
from pipelines.cli.command import Command, Pickled, print_facts


def convert(
    source: Annotated[
        str, Argument(metavar="IN", help="a single file, a diffusers folder, a bundled model, or org/name")
    ],
    target: Annotated[
        Path, Argument(metavar="OUT", help="NAME.safetensors for a single file, another name for a folder")
    ],
    config: Annotated[
        Path | None, Option(metavar="FILE", help="of a single file: its YAML, or a folder of configs")
    ] = None,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction", "sample"] | None, Option(help="of a single file: what its UNet predicts")
    ] = None,
    variant: Annotated[str | None, Option(help="of a folder: which weights to take, for example fp16")] = None,
    revision: Annotated[str | None, Option(help="of a model on a hub: a branch, a tag or a commit")] = None,
    ema: Annotated[bool, Option("--ema", help="take the averaged weights of a single file")] = False,
    pickled: Pickled = False,
    prune: Annotated[bool, Option("--prune", help="leave out what is not needed for images")] = False,
) -> Command:
    """A checkpoint in its other form: single file or folder."""
    return functools.partial(
        run,
        source,
        target,
        config=config,
        prediction_type=prediction_type,
        variant=variant,
        revision=revision,
        ema=ema,
        pickled=pickled,
        prune=prune,
    )


def run(source: str, target: Path, **options: Any) -> int:
    """Converts, with the options of `pipelines.convert.convert`, and prints what was written."""
    from pipelines import convert
    from sdjax.checkpoints.streamed import remove_unfinished

    with stopping.undoing(lambda: None, lambda _: remove_unfinished()):
        written = list(convert.convert(source, target, **options))
    print_facts(written)
    return 0
