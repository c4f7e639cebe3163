"""`sdjax env`."""

from pipelines.cli.command import Command, print_facts


def env() -> Command:
    """Versions and devices."""
    return run


def run() -> int:
    """Prints them."""
    from pipelines import inspect

    print_facts(inspect.environment())
    return 0
