"""The command line of what is done in stages."""

import argparse
from pathlib import Path


def parse_stages(
    parser: argparse.ArgumentParser, stages: tuple[str, ...]
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Reads a command line that names stages and the folder where runs are kept, which is made.

    Returns:
      The options (`state` is that folder) and the stages to do, in their order: all if none is named.
    """
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(stages)}; all if none is named")
    parser.add_argument("--state", type=Path, default=Path("training-state/emoji"), help="where the runs are kept")
    options = parser.parse_args()
    strange = set(options.stages) - set(stages)
    if strange:
        parser.error(f"unknown stage {', '.join(sorted(strange))}; the stages are {', '.join(stages)}")
    options.state.mkdir(parents=True, exist_ok=True)
    return options, tuple(stage for stage in stages if not options.stages or stage in options.stages)
