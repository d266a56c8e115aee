"""What a swap decides from a plan and the probes, and what it then tells a person."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.spark.control.plugins.action.vllm_decide import decide
from ansible_collections.spark.control.plugins.action.vllm_outcome import Outcome

GIB = 2**30


def plan(model="gemma", hosts=("spark1",), share=0.8, repo="org/gemma"):
    """A plan as recipe_plan makes it, as far as a decision reads it."""
    return {
        "model": model,
        "title": model.title(),
        "repo": repo,
        "served_name": repo,
        "mode": "cluster" if len(hosts) > 1 else "solo",
        "container": "vllm_node",
        "image": "vllm-node",
        "nodes": [{"host": host, "address": f"10.0.0.{n}"} for n, host in enumerate(hosts, 1)],
        "tensor_parallel": len(hosts),
        "pipeline_parallel": 1,
        "port": 8888,
        "memory": {"gpu_memory_utilization": share, "gpu_memory_gb": None, "weights_bytes": None},
        "digest": f"sha256:{model}",
    }


def answer(serves=None, *, available=115, held=0, since=1.0, weights="complete", size=17, repo="org/gemma", **other):
    """One Spark's registered probe; `serves` is the plan whose container it holds."""
    container = record = vllm = None
    if serves:
        labels = {"spark-control.digest": serves["digest"], "spark-control.model": serves["model"]}
        container = {"name": "vllm_node", "labels": labels, "image_id": "sha256:1", "running": True, "started_at": 1.0}
        container["serving_process"] = True
        record = {"plan": serves, "job": "j", "launched": 1.0, "since": since}
        vllm = {"models": [serves["served_name"]], "in_flight": 0}
    found = {
        "memory": {"total": 122 * GIB, "available": available * GIB, "model": held * GIB},
        "docker": {"ok": True, "error": None},
        "images": {"vllm-node": "sha256:1"},
        "launcher": {"path": "/l", "present": True},
        "container": container,
        "record": record,
        "vllm": vllm,
        "lease": None,
        "weights": {repo: {"state": weights, "bytes": size * GIB, "reason": "2 of its files are missing"}},
    }
    return {"spark": found | other}


def decided(wanted, seen, **other):
    """decide() with what the tests have in common."""
    common = {"lease": "me", "holder": "ann@laptop", "supersedes": [], "force": False}
    return decide(wanted, seen, "spark1", **(common | other))


def told(wanted, decision, **other):
    """The result that a person reads."""
    said = {"operation": "swap", "head": "spark1", "preview": False, "planned": {"plan": wanted}, "decision": decision}
    said |= {key: {} for key in ("seen", "stopped", "attempt", "leased", "launched", "answer")}
    return Outcome(said | other).result()


def test_an_empty_spark_takes_the_model():
    decision = decided(plan(), {"spark1": answer()})
    assert decision["changes"]
    assert decision["stops"] == []
    assert decision["needs"] == {"spark1": int(0.8 * 122 * GIB)}


def test_the_same_launch_again_changes_nothing():
    decision = decided(plan(), {"spark1": answer(plan())})
    assert decision["unchanged"]
    assert told(plan(), decision)["outcome"] == "unchanged"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found["container"]["labels"].update({"spark-control.digest": "sha256:other"}),
        lambda found: found["container"].update(serving_process=False),
        lambda found: found["container"].update(image_id="sha256:older"),
        lambda found: found.update(vllm=None),
        lambda found: found["record"].update(since=None),
    ],
    ids=["another launch", "dead process", "older image", "no answer", "never answered"],
)
def test_up_is_not_serving(spoil):
    seen = answer(plan())
    spoil(seen["spark"])
    assert decided(plan(), {"spark1": seen})["changes"]


def test_a_leftover_container_on_another_spark_is_stopped():
    decision = decided(plan(), {"spark1": answer(plan()), "spark2": answer(plan("old"))})
    assert decision["changes"]
    assert decision["stops"][0]["hosts"] == ["spark1", "spark2"]


def test_memory_shows_both_sides():
    decision = decided(plan(), {"spark1": answer(available=71)})
    assert decision["reason"] == "memory"
    assert "It needs 98 GB and 71 GB of the 122 GB on spark1 are free" in decision["problems"][0]["message"]
    assert not decision["changes"]


def test_an_estimate_that_is_none_too_sure_warns_and_lets_it_go_ahead():
    seen = answer()
    shape = {"layers": 40, "kv_heads": 8, "head_dim": 128, "context": 131072, "mla": True}
    seen["spark"]["weights"]["org/gemma"]["facts"] = {name: {"value": value} for name, value in shape.items()}
    decision = decided(plan(), {"spark1": seen})
    assert decision["changes"]
    text = "Its cache is an estimate: latent attention, whose size its configuration does not give."
    assert decision["warnings"] == [text]
    del seen["spark"]["weights"]["org/gemma"]["facts"]["mla"]["value"]
    assert decided(plan(), {"spark1": seen})["warnings"] == []


def test_one_request_that_cannot_fit_stops_the_swap():
    seen = answer(plan("old"), available=20, held=90, size=60)
    shape = {"layers": 80, "kv_heads": 8, "head_dim": 128, "context": 262144}
    seen["spark"]["weights"]["org/gemma"]["facts"] = {name: {"value": value} for name, value in shape.items()}
    decision = decided(plan(share=0.8), {"spark1": seen})
    assert decision["reason"] == "memory"
    assert not decision["changes"]
    assert "one request of 262,144 tokens 80 GB" in told(plan(), decision)["message"]


def test_memory_that_the_present_model_holds_comes_back():
    seen = {"spark1": answer(plan("old"), available=10, held=100)}
    assert decided(plan(), seen)["changes"]


def test_weights_that_are_too_big_are_told_by_their_size():
    decision = decided(plan(share=0.95), {"spark1": answer(size=200)})
    assert "Its weights take 200 GB" in decision["problems"][0]["message"]


def test_half_of_the_weights_go_on_each_of_two_sparks():
    two = plan(hosts=("spark1", "spark2"))
    decision = decided(two, {"spark1": answer(size=150), "spark2": answer(size=150)})
    assert [row["weights"] for row in decision["arithmetic"]] == [75 * GIB, 75 * GIB]
    assert decision["changes"]


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        ({"docker": {"ok": False, "error": "no daemon"}}, "docker", "no daemon"),
        ({"images": {"vllm-node": None}}, "image_missing", "vllm-node is not on spark1"),
        ({"launcher": {"path": "/l", "present": False}}, "launcher_missing", "/l on spark1"),
        ({"lease": {"id": "x", "holder": "ComfyUI", "purpose": "", "seconds_left": 720}}, "leased", "ComfyUI"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_touched(spoil, code, words):
    decision = decided(plan(), {"spark1": answer(plan("old"), available=20, held=90, **spoil)})
    assert decision["reason"] == code
    result = told(plan(), decision)
    assert words in result["message"]
    assert not result["changed"]


@pytest.mark.parametrize(
    ("shape", "content", "reason"),
    [
        ("october", "sha256:same", None),
        ("october", "sha256:other", "image_missing"),
        ("september", "sha256:same", "image_missing"),
    ],
)
def test_images_are_compared_as_the_heads_launcher_compares_them(shape, content, reason):
    launcher = {"path": "/l", "present": True, "shape": shape}
    here = answer(launcher=launcher, image_contents={"vllm-node": "sha256:same"})
    there = answer(images={"vllm-node": "sha256:2"}, image_contents={"vllm-node": content})
    assert decided(plan(hosts=("spark1", "spark2")), {"spark1": here, "spark2": there})["reason"] == reason


def test_weights_missing_on_one_of_two_hosts():
    two = plan(hosts=("spark1", "spark2"))
    decision = decided(two, {"spark1": answer(), "spark2": answer(weights="partial")})
    assert [(row["host"], row["code"]) for row in decision["problems"]] == [("spark2", "weights_missing")]


def test_a_lease_of_a_dead_job_of_ours_does_not_stop_us():
    lease = {"id": "dead", "holder": "page", "purpose": "", "seconds_left": 200}
    assert decided(plan(), {"spark1": answer(lease=lease)}, supersedes=["dead"])["changes"]
    assert decided(plan(), {"spark1": answer(lease=lease)}, force=True)["changes"]


def test_a_swap_that_somebody_else_runs_is_told_with_how_to_go_on():
    lease = {"id": "x", "holder": "bo@desk", "purpose": "swap to Gemma 4", "seconds_left": 110, "seconds_held": 200}
    message = decided(plan(), {"spark1": answer(lease=lease)})["problems"][0]["message"]
    assert message.startswith("The GPUs are reserved by bo@desk for swap to Gemma 4, for another 2 min. ")
    assert "took them 3 min ago" in message
    assert "tidy_swap.yml" in message
    assert "force=true" in message


def test_what_a_dead_run_left_reserved_is_given_free_where_nothing_else_changes():
    lease = {"id": "dead", "holder": "page", "purpose": "swap to X", "seconds_left": 200}
    same = decided(plan("old"), {"spark1": answer(plan("old"), lease=lease)}, supersedes=["dead"])
    assert (same["unchanged"], same["left_over"]) == (True, True)
    result = told(plan("old"), same)
    assert (result["outcome"], result["changed"]) == ("unchanged", True)
    assert "is free again" in result["message"]
    free = decided(plan("old"), {"spark1": answer(plan("old"))})
    assert told(plan("old"), free)["changed"] is False


def test_what_the_launcher_would_say_is_refused_for_the_new_and_warned_of_for_the_old():
    kept_out = [["head_kept_out", "spark1 does not get in to spark2 over SSH."]]
    new = decided(plan(), {"spark1": answer(plan("old"), held=90, rehearsal={"plan": kept_out, "serving": []})})
    assert (new["reason"], new["changes"]) == ("head_kept_out", False)
    old = decided(plan(), {"spark1": answer(plan("old"), held=90, rehearsal={"plan": [], "serving": kept_out})})
    assert old["changes"]
    assert "could not be put back if the swap failed: spark1 does not get in" in old["warnings"][0]


def test_a_refusal_for_memory_names_who_holds_it():
    others = [{"name": "the container comfy", "bytes": 61 * GIB}, {"name": "python3 (pid 7)", "bytes": 4 * GIB}]
    memory = {"total": 122 * GIB, "available": 40 * GIB, "model": 0, "others": others}
    message = decided(plan(), {"spark1": answer(memory=memory)})["problems"][0]["message"]
    assert message.endswith(" There, the container comfy holds 61 GB and python3 (pid 7) holds 4.0 GB.")


def test_a_spark_that_was_left_out_of_the_run_is_said_to_be_once():
    decision = decided(plan(hosts=("spark1", "spark2")), {"spark1": answer()})
    assert decision["problems"][0]["message"] == "spark2 was left out of this run, which needs it"


def test_a_spark_that_is_not_needed_may_be_away():
    away = {"unreachable": True, "msg": "Connection timed out"}
    decision = decided(plan(), {"spark1": answer(), "spark2": away})
    assert decision["changes"]
    assert "spark2 does not answer" in decision["warnings"][0]


def test_a_spark_that_is_needed_may_not():
    away = {"unreachable": True, "msg": "Connection timed out"}
    decision = decided(plan(hosts=("spark1", "spark2")), {"spark1": answer(), "spark2": away})
    assert decision["reason"] == "unreachable"


def test_a_spark_that_was_left_out_of_the_run_is_told():
    decision = decided(plan(hosts=("spark1", "spark2")), {"spark1": answer()})
    assert [(row["host"], row["code"]) for row in decision["problems"]] == [("spark2", "unreachable")]
    assert decided(plan(), {"spark2": answer()})["problems"][0]["host"] == "spark1"


def test_a_spark_whose_docker_is_down_is_left_alone_where_it_is_not_needed():
    down = answer(docker={"ok": False, "error": "no daemon"})
    decision = decided(plan(), {"spark1": answer(), "spark2": down})
    assert decision["changes"]
    assert decision["hosts"] == ["spark1"]
    assert "docker on spark2 does not answer" in decision["warnings"][0]


def test_a_spark_that_ends_background_work_says_what_to_do():
    seen = answer(session={"user": "spark", "linger": False, "remove_ipc": True})
    assert "sudo loginctl enable-linger spark" in decided(plan(), {"spark1": seen})["warnings"][0]
    kept = answer(session={"user": "spark", "linger": True, "remove_ipc": True})
    assert decided(plan(), {"spark1": kept})["warnings"] == []


def test_a_model_started_by_hand_is_said_to_be_lost_on_failure():
    seen = answer(plan("old"), record=None, available=20, held=90)
    decision = decided(plan(), {"spark1": seen})
    assert decision["previous"]["plan"] is None
    assert "cannot be put back" in decision["warnings"][0]


def test_a_failed_swap_tells_both_stories():
    seen = {"spark1": answer(plan("old"), available=20, held=90)}
    decision = decided(plan(), seen)
    crashed = {"problem": {"code": "crashed", "message": "It stopped by itself while it loaded."}, "log_tail": ["x"]}
    attempt = {"spark1": {"stopped": {}, "launched": {}, "answer": crashed}}
    back = told(plan(), decision, seen=seen, attempt=attempt)
    assert back["outcome"] == "rolled back"
    assert back["message"] == "Gemma did not start: it stopped by itself while it loaded. Old is serving again."
    assert back["log_tail"] == ["x"]
    again = copy.deepcopy(crashed)
    again["problem"]["message"] = "Its container ended while it loaded."
    lost = told(plan(), decision, seen={"spark1": answer()}, attempt=attempt, answer=again)
    assert lost["reason"] == "rollback_failed"
    assert "Nothing is serving now" in lost["message"]
    assert lost["stories"]["old"] == "Its container ended while it loaded."
