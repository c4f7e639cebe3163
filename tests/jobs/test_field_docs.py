from pathlib import Path

import pytest

from sdjax.jobs.field_docs import markdown_table, with_tables, write
from sdjax.jobs.job import FIELDS, Job

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_in_the_docs_are_those_of_the_fields(page):
    text = page.read_text("utf-8")
    assert with_tables(text) == text, "run make docs"


def test_every_field_is_in_a_table_of_the_docs():
    texts = [page.read_text("utf-8") for page in PAGES]
    assert [name for name in FIELDS if not any(f"\n| `{name}` | " in text for text in texts)] == []


def test_a_field_that_changes_changes_its_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Fields\n\n<!-- fields: steps, hires -->\nold\n<!-- end of fields -->\n\nmore\n")
    write([page])
    head, table, more = page.read_text().split("\n\n", 1)[0], *page.read_text().split("-->\n", 1)[1].split("<!-- end")
    assert head == "# Fields" and more.endswith("\n\nmore\n") and "old" not in table
    assert [line.split(" | ")[0] for line in table.splitlines()[3:-1]] == [
        "| `steps`", "| `hires_scale`", "| `hires_upscaler`", "| `hires_steps`", "| `hires_strength`",
    ]  # fmt: skip


def test_a_name_that_is_no_field_is_an_error():
    with pytest.raises(ValueError, match="'stesp' is neither a field nor one of the groups prompts, noise"):
        markdown_table(["stesp"])


def test_what_fields_do_is_told_in_sentences():
    for name, field in FIELDS.items():
        assert field.group and field.group not in FIELDS, name
        assert field.doc[0].isupper() and field.doc.endswith("."), name
        assert f"  {name}: {field.doc}\n" in str(Job.__doc__)
