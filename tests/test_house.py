"""Sizes that keep the code readable; imports between rooms are checked by import-linter in `make test`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import structsam_export

FILES = sorted(Path(structsam_export.__file__).parent.rglob("*.py"))
LONGEST_FUNCTION, LONGEST_FILE = 60, 330


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FILES[0].parent)))
def test_functions_and_files_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION] == []
