"""The description of the rooms names those that there are."""

import ast
import re
import statistics
from pathlib import Path

import pytest

from sdjax.engine import passes

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")


@pytest.mark.parametrize("package", ["sdjax", "pipelines"])
def test_each_folder_of_a_package_is_a_row_of_its_table(package: str) -> None:
    folders = {f"{package}/{path.parent.name}" for path in (ROOT / package).glob("*/__init__.py")}
    assert set(re.findall(rf"^\| `({package}/\w+)` \|", TEXT, re.MULTILINE)) == folders


def test_each_kind_of_pass_is_a_row_of_its_table() -> None:
    kinds = {kind.__name__ for kind in passes.Pass.__args__}
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", TEXT, re.MULTILINE)) == kinds


def test_no_more_than_five_modules_lie_at_the_top_of_the_library() -> None:
    assert len(list((ROOT / "sdjax").glob("*.py"))) <= 5


def test_no_module_is_longer_than_500_lines() -> None:
    modules = [path for package in ("sdjax", "pipelines") for path in (ROOT / package).rglob("*.py")]
    assert [str(path) for path in modules if len(path.read_text("utf-8").splitlines()) > 500] == []


def test_functions_are_short() -> None:
    lengths = [
        node.end_lineno - node.lineno + 1
        for package in ("sdjax", "pipelines")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    assert statistics.median(lengths) <= 8
