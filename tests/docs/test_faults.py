"""Every promise of docs/faults.md names its tests, and they are there."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| fault |")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_a_promise_has_tests(row):
    fault, promise, tests = (cell.strip() for cell in row.strip("|").split("|"))
    assert fault
    assert promise
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert named
    for path, name in named:
        module = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_the_table_was_read():
    assert len(ROWS) > 30
