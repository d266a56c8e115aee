"""The suite keeps its own rules: it waits for what happens, and a file that is called test_* has tests."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import PROJECT

FILES = sorted(path for path in (PROJECT / "tests").rglob("*.py") if "bench" not in path.parts)
# Where a pause is the thing itself: between two looks, what a slow link takes, an upstream that takes its time.
PAUSES = {"support.py", "lab/engine.py", "lab/delay.py", "lab/host/spark_host.py", "unit/test_web_server.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT / "tests")))
def test_nobody_sleeps_where_it_could_wait(path):
    tree = ast.parse(path.read_text())
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    sleeps = [name for name in called if name.endswith((".sleep", "wait_for_timeout")) or name == "sleep"]
    assert not sleeps or str(path.relative_to(PROJECT / "tests")) in PAUSES
    if path.name.startswith("test_"):
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert any(name.startswith("test_") for name in names), "a helper is not called test_*"
