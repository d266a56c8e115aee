"""What the probes of all Sparks say together: what serves, and whether a plan fits. Pure functions, no I/O.

`seen` is {host: the registered result of spark_probe}, a host that did not answer included.
"""

from __future__ import annotations

import re

from . import spark_fit, spark_measured
from .spark_docker import LABEL_DIGEST, LABEL_MODEL

claim, gb = spark_fit.claim, spark_fit.gb

# The answer of a Spark that the run was not to ask (--limit).
LEFT_OUT = {"unreachable": True, "msg": "it was left out of this run"}
# Ansible's own words before ssh's, and ssh's about the connection that it had shared.
_BEFORE = re.compile(r"^(Task failed: )?(Failed to connect to the host via ssh: )?(mux_client\w*: .*?Broken pipe )?")


def per_host(task_vars: dict, name: str) -> dict:
    """{host: what it registered as `name`}, over all hosts of the play that have it, for an action plugin."""
    rows = ((host, task_vars["hostvars"][host].get(name)) for host in task_vars["ansible_play_hosts_all"])
    return {host: row for host, row in rows if row is not None}


def peers(task_vars: dict) -> dict[str, dict]:
    """{host: {host, address, user}} of the play's Sparks; the address is the fast link's where there is one."""
    found = {}
    for host in task_vars["ansible_play_hosts_all"]:
        known = task_vars["hostvars"][host]
        addresses = (known.get(key) for key in ("spark_link_address", "cluster_address", "ansible_host"))
        address = next((str(address) for address in addresses if address), host)
        found[host] = {"host": host, "address": address, "user": str(known.get("ansible_user") or "")}
    return found


def spark(answer: dict) -> dict | None:
    """One Spark's probe out of its registered result; None where it did not answer or is no Spark."""
    return None if answer.get("unreachable") or answer.get("failed") else answer.get("spark")


def fault(host: str, answer: dict) -> str:
    """Why a Spark did not answer, as a sentence."""
    if answer is LEFT_OUT:
        return f"{host} was left out of this run, which needs it"
    said = " ".join(str(answer.get("msg") or "no answer").split())
    said = _BEFORE.sub("", said).rstrip(" .:")
    if not answer.get("unreachable"):
        return f"{host}: {said[:300]}"
    # ssh puts a banner of forty @ and half a page around these two.
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            f"{host} shows another host key than the one that is trusted, so nothing was sent to it."
            " If it was set up anew, run copy_ssh_key; it says how to trust the new key"
        )
    if "Host key verification failed" in said:
        return f"{host} shows a host key that this machine does not trust yet; run copy_ssh_key first"
    return f"{host} does not answer: {said[:300]}"


def problem(host: str | None, code: str, message: str, field: str | None = None) -> dict:
    """One reason not to go ahead; `field` is the option that is wrong."""
    return {"host": host, "code": code, "message": message, "field": field}


def short_lived(found: dict) -> str | None:
    """Why what is started on this Spark may not live, and what to do, to go on after its name; None where it lives."""
    session = found.get("session") or {}
    if session.get("remove_ipc") and session.get("linger") is False:
        return (
            "ends background work when the last SSH session closes (RemoveIPC is on, linger is off)."
            f" Run on it, once: sudo loginctl enable-linger {session['user']}."
        )
    return None


def serving(head: str, seen: dict) -> dict | None:
    """What holds the GPUs now: {model, title, repo, served_name, mode, nodes, since, digest, port, ready, job, plan}.

    None where no Spark has a vLLM container. A container that was not launched from here has no model and no plan:
    it can be stopped, and not be put back.
    """
    sparks = {host: spark(answer) for host, answer in seen.items()}
    holders = [host for host, found in sparks.items() if found and found["container"]]
    if not holders:
        return None
    first = sparks.get(head) or {}
    record, container = first.get("record"), first.get("container")
    names = (first.get("vllm") or {}).get("models") or []
    if not (record and container and record["plan"]["digest"] == container["labels"].get(LABEL_DIGEST)):
        held = sparks[holders[0]]["container"]
        title = held["labels"].get(LABEL_MODEL) or (names[0] if names else f"the container {held['name']}")
        unknown = {"model": None, "repo": None, "served_name": names[0] if names else None, "mode": None}
        unknown |= {"digest": None, "port": None, "plan": None, "job": None, "ready": bool(names)}
        return unknown | {"title": title, "nodes": holders, "since": held["started_at"]}
    plan = record["plan"]
    nodes = [node["host"] for node in plan["nodes"]]
    working = all((sparks.get(host) or {}).get("container", {}) for host in nodes)
    alive = working and all(at_work(sparks[host]["container"], host == nodes[0]) for host in nodes)
    answers = record["since"] is not None and plan["served_name"] in names
    kept = {key: plan[key] for key in ("model", "title", "repo", "served_name", "mode", "digest", "port")}
    return kept | {
        "nodes": nodes,
        "since": record["since"],
        "launched": record["launched"],
        "job": record["job"],
        "ready": bool(alive and answers),
        "plan": plan,
    }


def at_work(container: dict, leads: bool) -> bool:
    """Whether a node's container does its part. One of Ray's that does not lead shows no process of vLLM's own."""
    return bool(container.get("serving_process") or (container.get("ray") and not leads))


def arithmetic(plan: dict, seen: dict) -> list[dict]:
    """Does the plan fit each of its nodes once the present model is gone? One row a node that answered; see spark_fit.

    What was measured is the head's; vLLM's parts on the other nodes are its like.
    """
    rows, name = [], spark_measured.model_of(plan)
    head = spark(seen.get(plan["nodes"][0]["host"], {})) if plan["nodes"] else None
    last = spark_measured.recall((head or {}).get("measured"), plan)
    for place in plan["nodes"]:
        found = spark(seen.get(place["host"], {}))
        if not found:
            continue
        memory = found["memory"]
        node = {"host": place["host"], "total": memory["total"], "available": memory["available"]}
        weights, draft = found["weights"], plan["memory"].get("draft_model")
        node["held"] = memory.get("model", 0)
        rows.append(spark_fit.row(plan, node, weights.get(name), weights.get(draft) if draft else None, last))
    return rows


def join(names: list[str]) -> str:
    """Names as in a sentence: spark1; spark1 and spark2; spark1, spark2 and spark3."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
