"""docs/architecture.md is the house as it stands: its folders, its picture, its signposts."""

from __future__ import annotations

import re
import subprocess

import grimp
import pytest

from tests.conftest import PROJECT

PAGE = (PROJECT / "docs/architecture.md").read_text()
TABLES = [re.findall(r"^\| `([\w/]+)` \|", part, re.M) for part in PAGE.split("\n| folder |")[1:]]
NO_CODE = {"static", "templates"}  # they go with the pages


def folders(place: str) -> set[str]:
    """The folders in a place that git knows."""
    command = ["git", "ls-files", place or "."]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    below = [path.removeprefix(place).strip("/") for path in listed.splitlines()]
    return {path.split("/")[0] for path in below if "/" in path and not path.startswith(".")}


def test_every_folder_is_told_of_and_no_other():
    assert set(TABLES[0]) == folders("")
    assert set(TABLES[1]) == folders("webui/") - NO_CODE


def test_the_picture_is_what_the_imports_say():
    graph, arrows = grimp.build_graph("webui"), set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            here, there = (name.split(".")[1:2] for name in (module, other))
            if here and there and here != there:
                arrows.add(f"    {here[0]} --> {there[0]}")
    drawn = PAGE.split("```mermaid\nflowchart TD\n")[2].split("```")[0]
    assert drawn.splitlines() == sorted(arrows), "draw it anew:\n" + "\n".join(sorted(arrows))


@pytest.mark.parametrize("path", re.findall(r"`([\w/]+\.(?:py|yml))`", PAGE))
def test_a_signpost_leads_somewhere(path):
    assert (PROJECT / path).is_file()
