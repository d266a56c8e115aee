"""Inside the plugins an import runs one way, and what goes to a Spark needs nothing but Python there."""

from __future__ import annotations

import ast
import functools
import sys

import pytest

from tests.conftest import PROJECT

PLUGINS = PROJECT / "plugins"
COLLECTION = "ansible_collections.spark.control.plugins"
# A row imports from the rows above it, and from none beside or below.
LAYERS = """
disk docker families fit host inventory launch_args model recipe_memory write
facts launcher lease measured menu recipe_shell serving transfer whole workers
hub local recipe_command rehearsal report run
cache recipe_fields
copy download recipe remove
copies infer recipe_file
"""
ROW = {f"spark_{name}": row for row, names in enumerate(LAYERS.split("\n")) for name in names.split()}
SHARED = sorted(path.stem for path in (PLUGINS / "module_utils").glob("*.py") if path.stem != "__init__")
OURS = [path for kind in ("modules", "action", "module_utils", "callback") for path in (PLUGINS / kind).glob("*.py")]


@functools.cache
def imports(path) -> list[str]:
    """Every module that a file names, its own collection's with their whole names."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            place = f"{COLLECTION}.{path.parent.name}" if node.level else ""
            place = ".".join(part for part in (place, node.module) if part)
            folder = place in (COLLECTION, *(f"{COLLECTION}.{kind}" for kind in ("modules", "action", "module_utils")))
            found += [f"{place}.{alias.name}" for alias in node.names] if folder else [place]
    return found


def shared(path) -> list[str]:
    """The module_utils that a file imports."""
    start = f"{COLLECTION}.module_utils."
    return [name.removeprefix(start).split(".")[0] for name in imports(path) if name.startswith(start)]


def sent(path) -> set[str]:
    """The module_utils that Ansible sends along with a module."""
    found, todo = set(), shared(path)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += shared(PLUGINS / "module_utils" / f"{name}.py")
    return found


def test_every_shared_module_has_its_row():
    assert sorted(ROW) == SHARED


@pytest.mark.parametrize("name", SHARED)
def test_an_import_runs_one_way(name):
    wrong = [other for other in shared(PLUGINS / "module_utils" / f"{name}.py") if ROW[other] >= ROW[name]]
    assert not wrong, f"{name} is no row below {wrong}"


@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_plugin_imports_the_shared_modules_and_no_other_plugin(path):
    inside = [name for name in imports(path) if name.startswith(("ansible_collections.", "webui", "tests"))]
    assert all(name.startswith(f"{COLLECTION}.module_utils.") for name in inside), inside


# The demo's lies beside the programs of its simulated Sparks, and runs with them on the controller alone.
SENT = sorted(set((PLUGINS / "modules").glob("*.py")) - {PLUGINS / "modules/demo_spark.py"})


@pytest.mark.parametrize("path", SENT, ids=lambda path: path.stem)
def test_what_goes_to_a_spark_needs_nothing_but_python(path):
    files = [path, *(PLUGINS / "module_utils" / f"{name}.py" for name in sent(path))]
    roots = {name.split(".")[0] for file in files for name in imports(file)}
    assert roots <= {*sys.stdlib_module_names, "ansible", "ansible_collections"}
    ansible = {name for file in files for name in imports(file) if name.split(".")[0] == "ansible"}
    assert ansible <= {"ansible.module_utils.basic"}, "the rest of Ansible is not on a Spark"
