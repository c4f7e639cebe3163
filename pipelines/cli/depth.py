"""`sdjax depth IMAGES OUT --model MODEL`."""

import functools
from typing import Annotated

from typer import Argument, Option

from pipelines import stopping, terminal
from pipelines.cli import FAILED
from pipelines.cli.command import Command, Pickled


def depth(
    images: Annotated[str, Argument(metavar="IMAGES", help="folder of images")],
    out: Annotated[str, Argument(metavar="OUT", help="folder for the maps: NAME.depth.png, 16 bits, near is bright")],
    model: Annotated[
        str, Option(metavar="MODEL", help="an estimator of depth (MiDaS DPT): a folder, a single file, or emoji")
    ],
    pickled: Pickled = False,
) -> Command:
    """Depth maps of a folder of images."""
    return functools.partial(run, images, out, model, pickled)


def run(images: str, out: str, model: str, pickled: bool) -> int:
    """Makes them, and prints what became of each image that has none, and how many there are."""
    from pipelines import depth
    from sdjax.library.depth import load_depth

    stopping.hint("the same command goes on from here")
    with terminal.progress() as bar:
        task = bar.add_task("depth", total=len(depth.images_in(images)))
        mapped = list(
            depth.map_folder(images, out, lambda: load_depth(model, pickled=pickled), lambda: bar.advance(task))
        )
    failed = [each for each in mapped if each.problem]
    there = sum(each.there for each in mapped)
    for each in failed:
        terminal.line(str(each.problem))
    terminal.line(
        f"images   {len(mapped):>8}  {len(mapped) - there - len(failed)} made, {there} there, {len(failed)} failed"
    )
    return FAILED if failed else 0
