"""When a model may not go, by what every Spark said; and what is told afterwards."""

from __future__ import annotations

import pytest
from ansible_collections.spark.control.plugins.action import weights_decide, weights_delete_outcome
from ansible_collections.spark.control.plugins.module_utils import spark_recipe_file

FINE = {"problem": None, "reason": None, "removed": ["/x"], "bytes": 5, "freed": 0, "changed": True}
GONE = FINE | {"removed": [], "bytes": 0, "changed": False}


def spark(**more) -> dict:
    """A registered look at a Spark on which nothing serves."""
    return {"spark": {"container": None, "record": None, "lease": None, "vllm": None} | more}


def container(**labels) -> dict:
    return {"name": "vllm_node", "labels": labels, "started_at": 0, "running": True}


def plan(**more) -> dict:
    base = {
        "model": "m",
        "title": "M",
        "repo": "org/m",
        "served_name": "m",
        "mode": "solo",
        "digest": "d",
        "port": 8888,
    }
    return base | {"nodes": [{"host": "spark1"}]} | more


def decide(**more) -> dict:
    wish = {"repo": "org/a", "path": None, "hosts": ["spark1", "spark2"], "sparks": ["spark1", "spark2"]}
    wish |= {"head": "spark1", "recipes": [], "recipe_dirs": []}
    seen = more.pop("seen", {"spark1": spark(), "spark2": spark()})
    looked = more.pop("looked", {"spark1": FINE, "spark2": FINE})
    return weights_decide.decide(weights_decide.Wish(**wish | more), seen, looked)


def why(decision: dict) -> list[str]:
    return [row["code"] for row in decision["problems"]]


def test_it_goes_where_it_is():
    decision = decide(looked={"spark1": FINE, "spark2": GONE})
    assert (decision["problems"], decision["hosts"], decision["asked"]) == ([], ["spark1"], ["spark1", "spark2"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("org/a", True),
        ("vllm serve org/a --port 1", True),
        ('{"model": "org/a", "method": "mtp"}', True),
        ("/models/org/a/x", True),
        ("org/a-2", False),
        ("org/a.b", False),
        ("myorg/a", False),
        ("org/ab", False),
    ],
)
def test_a_plan_that_names_the_model_anywhere_keeps_it(text, named):
    record = {"plan": plan(command=["sh", "-c", text]), "since": 1, "launched": 1, "job": "j"}
    labels = {"spark-control.digest": "d", "spark-control.model": "m"}
    first = spark(container=container(**labels) | {"serving_process": True}, record=record, vllm={"models": ["m"]})
    assert why(decide(seen={"spark1": first, "spark2": spark()})) == (["serving"] if named else [])


@pytest.mark.parametrize(
    ("names", "kept"), [(["org/a"], True), ([], True), (["default"], True), (["org/other"], False)]
)
def test_somebody_elses_container_may_serve_it(names, kept):
    other = spark(container=container(), vllm={"models": names})
    assert bool(why(decide(seen={"spark1": other, "spark2": spark()}))) == kept


@pytest.mark.parametrize(
    ("purpose", "kept"),
    [("swap to The A", True), ("swap to org/a", True), ("swap to Another", False), ("research", False)],
)
def test_a_swap_to_it_that_is_under_way(purpose, kept):
    lease = {"holder": "timer", "purpose": purpose, "seconds_left": 60, "id": "x"}
    recipes = [{"name": "a", "title": "The A", "repo": "org/a"}, {"name": "b", "title": "Another", "repo": "org/b"}]
    assert bool(why(decide(seen={"spark1": spark(lease=lease), "spark2": spark()}, recipes=recipes))) == kept


def test_what_a_running_swap_would_put_back_stays():
    lease = {"holder": "timer", "purpose": "swap to Another", "seconds_left": 60, "id": "x"}
    record = {"plan": plan(repo="org/a"), "since": 1, "launched": 1, "job": "j"}
    assert why(decide(seen={"spark1": spark(lease=lease, record=record), "spark2": spark()})) == ["serving"]


def test_two_sparks_faults_are_both_told_and_nothing_goes():
    away = {"unreachable": True, "msg": "no route to host"}
    unwell = {"failed": True, "msg": "This host does not look like a Spark"}
    decision = decide(seen={"spark1": unwell, "spark2": away}, looked={"spark2": away})
    assert (why(decision), decision["hosts"]) == (["unreachable", "unreachable"], [])
    result = weights_delete_outcome.told(decision, {}, False, False)
    assert (result["ok"], result["outcome"], result["changed"]) == (False, "refused", False)
    assert [
        "does not look like a Spark" in result["hosts"][0]["problem"],
        "no route" in result["hosts"][1]["problem"],
    ] == [
        True,
        True,
    ]


def test_a_spark_that_is_not_named_may_be_away():
    away = {"unreachable": True, "msg": "no route to host"}
    decision = decide(
        hosts=["spark1"], seen={"spark1": spark(), "spark2": away}, looked={"spark1": FINE, "spark2": away}
    )
    assert (why(decision), decision["hosts"], decision["elsewhere"]) == ([], ["spark1"], ["spark2"])


def test_a_disk_that_fails_half_way_is_that_sparks_problem():
    decision = decide()
    broken = FINE | {"problem": "org/a could not be deleted: I/O error.", "reason": "disk"}
    result = weights_delete_outcome.told(decision, {"spark1": FINE | {"freed": 5}, "spark2": broken}, False, False)
    assert (result["ok"], result["outcome"], result["changed"], result["freed"]) == (False, "failed", True, 5)
    assert [row["problem"] for row in result["hosts"]] == [None, "spark2: org/a could not be deleted: I/O error."]


def test_without_a_decision_nothing_was_deleted():
    result = weights_delete_outcome.told({}, {}, False, False)
    assert (result["ok"], result["outcome"]) == (False, "refused")
    assert "nothing was deleted" in result["message"]


def test_only_an_inferred_card_in_the_first_folder_goes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    inferred = spark_recipe_file.mark("model: org/a\n", "org/a", "2026-11-22")
    (second / "a.yaml").write_text(inferred)
    (first / "mine.yaml").write_text("model: org/a\n# Inferred by Spark Control\n")
    (first / "broken.yaml").write_text(spark_recipe_file.mark("model: [org/a\n", "org/a", "2026-11-22"))
    (first / "edited.yaml").write_text(inferred + "# mine now\n")
    (first / "link.yaml").symlink_to(second / "a.yaml")
    assert decide(recipe_dirs=[str(first), str(second)])["card"] is None
    (first / "a.yaml").write_text(inferred)
    assert decide(recipe_dirs=[str(first)])["card"] == str(first / "a.yaml")
    kept = decide(recipe_dirs=[str(first)], hosts=["spark1"])
    assert (kept["card"], kept["card_kept"], kept["elsewhere"]) == (None, True, ["spark2"])
