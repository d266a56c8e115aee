"""Ansible action: decide, from the plan and what every Spark said, what a swap or a stop has to change.

An action plugin, because it reads nothing but its arguments and the controller can do that in no time.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import (
    spark_docker,
    spark_launcher,
    spark_lease,
    spark_measured,
    spark_report,
    spark_run,
)


class ActionModule(ActionBase):
    """See plugins/modules/vllm_decide.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read the arguments, decide."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "plan": {"type": "dict"},
                "seen": {"type": "str", "required": True},
                "head": {"type": "str", "required": True},
                "lease": {"type": "str"},
                "holder": {"type": "str"},
                "supersedes": {"type": "list", "elements": "str", "default": []},
                "force": {"type": "bool", "default": False},
            }
        )
        wish["lease"] = wish["lease"] or spark_run.run_id()
        wish["holder"] = wish["holder"] or spark_run.caller()
        wish["seen"] = spark_report.per_host(task_vars, wish["seen"])
        return {"changed": False, "decision": decide(**wish) | {"run": spark_run.run_id()}}


def decide(
    plan: dict | None, seen: dict, head: str, lease: str, holder: str, supersedes: list[str], force: bool
) -> dict:
    """What has to change: see RETURN in plugins/modules/vllm_decide.py. Without a plan, everything is to stop."""
    sparks = {host: spark_report.spark(answer) for host, answer in seen.items()}
    now = spark_report.serving(head, seen)
    holders = [host for host, found in sparks.items() if found and found["container"]]
    nodes = [node["host"] for node in plan["nodes"]] if plan else []
    problems = unreachable(seen, {head, *nodes, *(now["nodes"] if now else [])})
    problems += unwell(plan, sparks, nodes, head) if plan else dockerless(sparks, list(sparks))
    rows = spark_report.arithmetic(plan, seen) if plan else []
    problems += [
        problem(row["host"], "memory", row["message"] + holders_of(sparks[row["host"]]))
        for row in rows
        if not row["ok"]
    ]
    held = (sparks.get(head) or {}).get("lease")
    if held and spark_run.is_over(held.get("run")):
        supersedes = [*supersedes, held["id"]]
    if not spark_lease.yields(held, lease, supersedes=supersedes, force=force):
        problems.append(problem(head, "leased", spark_lease.describe(held)))
    same = bool(plan and now and now["ready"] and is_up(plan, now, sparks, holders))
    changes = not problems and not same and (plan is not None or bool(holders))
    in_flight = ((sparks.get(head) or {}).get("vllm") or {}).get("in_flight")
    return {
        "changes": changes,
        "unchanged": not problems and not changes,
        "reason": problems[0]["code"] if problems else None,
        "problems": problems,
        "warnings": warnings(seen, sparks, head, now, problems) + unverified(rows),
        "arithmetic": rows,
        "previous": now,
        "stops": [{"model": now["model"], "title": now["title"], "hosts": holders, "in_flight": in_flight}]
        if changes and now
        else [],
        "hosts": [
            host for host in seen if host in {*holders, *nodes} and sparks[host] and sparks[host]["docker"]["ok"]
        ],
        "drain_first": bool(changes and len(holders) > 1 and in_flight),
        "needs": {row["host"]: row["needs"] for row in rows},
        "previous_needs": needs_again(now, sparks),
        "lease_id": lease,
        "holder": holder,
        "supersedes": supersedes,
        "run_holds": bool(held and spark_lease.is_run(held)),
        "left_over": bool(held and held["id"] in supersedes),
        "lease": held,
        "launcher": (sparks.get(head) or {}).get("launcher"),
    }


def holders_of(found: dict) -> str:
    """Who else holds the GPU's memory, as a sentence to go on with; empty where nobody does."""
    others = [f"{row['name']} holds {spark_report.gb(row['bytes'])}" for row in found["memory"].get("others") or []]
    return f" There, {spark_report.join(others)}." if others else ""


def needs_again(now: dict | None, sparks: dict) -> dict:
    """Bytes by host that what serves now claims, should it have to be put back."""
    if not now or not now["plan"]:
        return {}
    return {
        host: spark_report.claim(now["plan"], sparks[host]["memory"]["total"])
        for host in now["nodes"]
        if sparks.get(host)
    }


def is_up(plan: dict, now: dict, sparks: dict, holders: list[str]) -> bool:
    """Whether exactly the plan is what serves: its digest on its nodes and nowhere else, from today's image."""
    nodes = [node["host"] for node in plan["nodes"]]
    if now["digest"] != plan["digest"] or sorted(holders) != sorted(nodes):
        return False
    return all(spark_docker.is_of(plan, sparks[host]["container"], sparks[host]["images"]) for host in nodes)


def unreachable(seen: dict, wanted: set[str]) -> list[dict]:
    """A problem for each Spark that is needed and did not answer, or was not asked."""
    answers = {host: seen.get(host, spark_report.LEFT_OUT) for host in sorted(wanted)}
    return [
        problem(host, "unreachable", spark_report.fault(host, answer))
        for host, answer in answers.items()
        if spark_report.spark(answer) is None
    ]


def dockerless(sparks: dict, hosts: list[str]) -> list[dict]:
    """A problem for each of these Sparks whose docker does not answer."""
    return [
        problem(host, "docker", f"docker on {host} does not answer: {sparks[host]['docker']['error']}")
        for host in hosts
        if sparks.get(host) and not sparks[host]["docker"]["ok"]
    ]


def unwell(plan: dict, sparks: dict, nodes: list[str], head: str) -> list[dict]:
    """What a node lacks for this plan: docker, the image (the same on all), the launcher, the weights."""
    found = dockerless(sparks, nodes)
    launcher = (sparks.get(head) or {}).get("launcher") or {}
    shape = spark_launcher.SHAPES.get(launcher.get("shape"))
    compared = "image_contents" if shape and shape.by_content else "images"
    ids = {}
    for host in nodes:
        there = sparks.get(host)
        if not there or not there["docker"]["ok"]:
            continue
        ids[host] = there[compared].get(plan["image"])
        if not there["images"].get(plan["image"]):
            found.append(problem(host, "image_missing", f"The image {plan['image']} is not on {host}."))
        weights = there["weights"].get(spark_measured.model_of(plan))
        if weights and weights["state"] != "complete":
            text = f"The weights of {plan['title']} are not complete on {host}: {weights['reason']}."
            found.append(problem(host, "weights_missing", text))
    if len({identity for identity in ids.values() if identity}) > 1:
        text = f"The image {plan['image']} is not the same on {spark_report.join(list(ids))}; copy it to all of them."
        found.append(problem(head, "image_missing", text))
    if launcher and not launcher["present"]:
        text = f"There is no working launcher at {launcher['path']} on {head}."
        found.append(problem(head, "launcher_missing", text))
    rehearsed = ((sparks.get(head) or {}).get("rehearsal") or {}).get("plan")
    return found + [problem(head, *trouble) for trouble in rehearsed or []]


def warnings(seen: dict, sparks: dict, head: str, now: dict | None, problems: list[dict]) -> list[str]:
    """What a person should know although it stops nothing."""
    named = {row["host"] for row in problems}
    said = [spark_report.fault(host, answer) for host, answer in seen.items() if not sparks[host] and host not in named]
    said += [row["message"] for row in dockerless(sparks, list(sparks)) if row["host"] not in named]
    ending = {host: spark_report.short_lived(found) for host, found in sparks.items() if found}
    said += [f"{host} {warning}" for host, warning in ending.items() if warning]
    for _code, message in ((sparks.get(head) or {}).get("rehearsal") or {}).get("serving") or []:
        said.append(f"{now['title'] if now else 'What serves'} could not be put back if the swap failed: {message}")
    if now and now["plan"] is None:
        said.append(f"{now['title']} was not started from here; if the swap fails it cannot be put back.")
    return said


def unverified(rows: list[dict]) -> list[str]:
    """What makes the sum of a launch that goes ahead an estimate; the Sparks of one launch have it in common."""
    open_rows = [row for row in rows if row["ok"] and row["kv_one"] is not None and not row["verified"]]
    return list(dict.fromkeys(note for row in open_rows for note in row["estimate"]))


def problem(host: str, code: str, message: str) -> dict:
    """One reason not to go ahead."""
    return {"host": host, "code": code, "message": message}
