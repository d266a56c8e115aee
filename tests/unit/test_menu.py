"""The menu: recipes and disks in one card a model."""

from __future__ import annotations

import json

import pytest
from ansible_collections.spark.control.plugins.module_utils.spark_menu import menu
from hypothesis import given
from hypothesis import strategies as st

FITS = {"ok": True, "message": "It needs 10 GB.", "verified": True, "estimate": []}


def entry(name, state="complete", **more):
    """A model on one disk."""
    known = {"name": name, "kind": "local" if name.startswith("/") else "cache", "repo": None, "bytes": 10, "frees": 10}
    known |= {"weights_bytes": 9, "files": 3, "state": state, "progress": None, "reason": "", "path": "/p"}
    return known | {"revision": "abc", "last_used": None, "facts": {}} | more


def recipe(name, repo, hosts=("spark1",), **more):
    """A recipe of the listing, placed on those Sparks; without any the cluster has too few."""
    placement = {"nodes": [{"host": host} for host in hosts]} if hosts else None
    return {"name": name, "title": name.title(), "repo": repo, "error": None, "placement": placement} | more


def card(recipes, disks, fits=None):
    """The first card."""
    listed = {host: {row["name"]: row for row in rows} for host, rows in disks.items()}
    return menu(recipes, listed, fits or {row["name"]: FITS for row in recipes})[0]


@pytest.mark.parametrize(
    ("disks", "more", "status", "message"),
    [
        ({"spark1": [entry("o/m")]}, {}, "ready", ""),
        ({"spark1": [entry("o/m")], "spark2": []}, {"hosts": ("spark1", "spark2")}, "missing on some hosts",
         "It is on spark1 and not on spark2."),
        ({"spark1": [entry("o/m", "partial", reason="2 of its files are missing")]}, {}, "incomplete",
         "On spark1 2 of its files are missing."),
        ({"spark1": [entry("o/m", "downloading", progress={"percent": 33.3})]}, {}, "downloading",
         "33 % is on spark1."),
        ({"spark1": [entry("o/m", "downloading")]}, {}, "downloading", "It comes to spark1."),
        ({"spark1": []}, {}, "no weights", "o/m is on no Spark."),
        ({"spark1": []}, {"hosts": ("spark1", "spark2")}, "no weights", "o/m is on no Spark that answers."),
        ({"spark1": [entry("o/m", "missing")]}, {}, "no weights", "o/m is on no Spark."),
        ({"spark1": [entry("o/m")]}, {"hosts": (), "min_nodes": 4}, "too few Sparks", "It needs 4 Sparks."),
        ({"spark1": [entry("o/m")]}, {"error": "command is missing"}, "broken", "command is missing"),
        # A Spark that did not answer is not said to lack anything.
        ({"spark1": [entry("o/m")]}, {"hosts": ("spark1", "spark2")}, "ready", ""),
    ],
)  # fmt: skip
def test_a_recipe_has_the_status_of_its_weights(disks, more, status, message):
    found = card([recipe("m", "o/m", **more)], disks)
    assert (found["status"], found["message"]) == (status, message)


def test_what_does_not_fit_says_by_how_much():
    too_big = {"ok": False, "message": "It needs 200 GB.", "verified": True, "estimate": []}
    found = card([recipe("m", "o/m")], {"spark1": [entry("o/m")]}, {"m": too_big})
    assert (found["status"], found["message"]) == ("too big", "It needs 200 GB.")


@pytest.mark.parametrize(
    ("facts", "state", "status"),
    [
        ({}, "complete", "needs setup"),
        ({"adapter": True}, "complete", "unusable"),
        ({"embedding": True}, "complete", "unusable"),
        ({}, "metadata only", "incomplete"),
        ({}, "downloading", "downloading"),
    ],
)
def test_a_model_without_a_recipe(facts, state, status):
    told = {name: {"value": value, "file": "config.json", "key": name} for name, value in facts.items()}
    found = card([], {"spark1": [entry("o/m", state, facts=told)]})
    assert (found["recipe"], found["status"]) == (None, status)
    assert found["id"] == "o--m"


def test_recipes_find_their_model_by_repo_folder_or_served_name():
    local = "/srv/models/my tune"
    mounted = recipe("mounted", None)
    mounted["placement"]["mounts"] = [{"source": local}]
    disks = {"spark1": {row["name"]: row for row in (entry("o/m"), entry(local), entry("o/other"))}}
    recipes = [recipe("a", "o/m"), recipe("b", "o/m"), mounted, recipe("served", None, served_name="other")]
    cards = {row["id"]: row for row in menu(recipes, disks, {})}
    assert {name: row["name"] for name, row in cards.items()} == {
        "a": "o/m", "b": "o/m", "mounted": local, "served": "o/other",
    }  # fmt: skip
    assert (cards["a"]["shared"], cards["b"]["shared"]) == (["b"], ["a"])
    assert cards["mounted"]["kind"] == "local"


names = st.text(min_size=1, max_size=30)
states = st.sampled_from(["complete", "partial", "downloading", "metadata only", "dangling", "missing"])


@given(st.dictionaries(st.sampled_from(["spark1", "spark2"]), st.lists(st.builds(entry, names, states), max_size=4)))
def test_any_disk_makes_a_menu_that_json_carries(disks):
    listed = {host: {row["name"]: row for row in rows} for host, rows in disks.items()}
    cards = menu([recipe("m", "o/m", ("spark1", "spark2"))], listed, {})
    there = {name for rows in listed.values() for name, row in rows.items() if row["state"] != "missing"} - {"o/m"}
    assert {row["name"] for row in cards if row["recipe"] is None} == there
    assert all(row["status"] and row["id"].strip() for row in json.loads(json.dumps(cards)))
