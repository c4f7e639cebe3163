"""docs/configuration.md has the tables that are made of the definitions."""

from pathlib import Path

from pipelines.config.table import BEGIN, END, key_tables

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_has_each_key_as_it_is_defined():
    _, begin, rest = PAGE.read_text("utf-8").partition(BEGIN)
    assert begin and rest.partition(END)[0] == key_tables(), "make docs writes it"
