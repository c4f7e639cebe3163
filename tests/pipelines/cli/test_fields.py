"""`sdjax fields` lists the fields of a job, for people and for programs."""

import json

from pipelines import cli
from sdjax.jobs.job import FIELDS


def test_each_field_is_listed_with_its_values_default_and_meaning(capsys):
    assert cli.main(["fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(FIELDS)
    assert lines[lines.index("steps") + 1].startswith("    1 to 1000; default: 20")


def test_the_schema_of_a_row_is_json_and_knows_the_keys_of_rows(capsys):
    assert cli.main(["fields", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["properties"].keys() > {*FIELDS, "sweep", "combinations", "cfg_scale"}
