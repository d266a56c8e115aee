"""The documents say what the code says."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from tests.conftest import PROJECT
from webui.jobs import reference

OURS = [path.parent for path in sorted(PROJECT.glob("roles/*/README.md"))]


def test_the_reference_page_is_what_the_specs_say():
    page = (PROJECT / "docs/operations.md").read_text()
    assert page == reference.page(), "run: python -m webui.jobs.reference > docs/operations.md"


def test_every_knob_stands_in_the_inventory_with_its_default():
    told = (PROJECT / "inventory/group_vars/all/main.yml").read_text()
    for role in ("spark", "vllm"):
        for name, value in yaml.safe_load((PROJECT / f"roles/{role}/defaults/main.yml").read_text()).items():
            renamed = re.match(r"\{\{ (\w+) \| default\('?([^')]*)'?\)", str(value))
            knob, default = renamed.groups() if renamed else (name, value)
            if knob in INTERNAL:
                continue
            assert f"# {knob}: {default}" in told, f"{knob} (roles/{role}/defaults/main.yml) is not in {told[:40]}…"


# Not knobs: what one task tells another, and what follows from the inventory's own variables.
INTERNAL = {
    "spark_images",
    "spark_repos",
    "spark_scan",
    "spark_plan",
    "spark_result_fails",
    "ansible_host",
    "recipe_dirs",  # its default is several folders, which the inventory says in words
    "vllm_hold_seconds",
    "vllm_lease_seconds",
}
INTERNAL |= {"spark_meminfo"}


@pytest.mark.parametrize("role", OURS, ids=lambda path: path.name)
def test_every_role_declares_what_it_takes(role):
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert all(entry["short_description"] for entry in specs.values())


@pytest.mark.parametrize("path", sorted(PROJECT.glob("plugins/modules/*.py")), ids=lambda path: path.stem)
def test_every_module_documents_its_options_and_returns(path):
    texts = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("DOCUMENTATION", "EXAMPLES", "RETURN")
    }
    documentation = yaml.safe_load(texts["DOCUMENTATION"])
    assert documentation["module"] == path.stem
    assert set(documentation["attributes"]) >= {"check_mode", "diff_mode", "idempotent"}
    assert yaml.safe_load(texts["RETURN"])
    example = yaml.safe_load(texts["EXAMPLES"])[0]
    unknown = set(example[f"spark.control.{path.stem}"] or {}) - set(documentation["options"])
    assert not unknown, f"the example of {path.stem} uses {unknown}"


def test_links_between_documents_lead_somewhere():
    for page in [PROJECT / "README.md", *PROJECT.glob("docs/*.md"), *PROJECT.glob("roles/*/README.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(PROJECT)} links to {target}"
