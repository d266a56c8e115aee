"""What the probes of all Sparks say together: what serves, and whether a plan fits. Pure functions, no I/O.

`seen` is {host: the registered result of spark_probe}, a host that did not answer included.
"""

from __future__ import annotations

from ansible.module_utils.spark_docker import LABEL_DIGEST, LABEL_MODEL

GIB = 2**30
# vLLM's own default for --gpu-memory-utilization.
VLLM_SHARE = 0.9


def gb(size: float) -> str:
    """Bytes in a person's words. GB are binary here, as everywhere else on a Spark: 128 GB of memory, 122 usable."""
    amount = size / GIB
    return f"{amount:.0f} GB" if amount >= 10 else f"{amount:.1f} GB"


def per_host(task_vars: dict, name: str) -> dict:
    """{host: what it registered as `name`}, over all hosts of the play that have it, for an action plugin."""
    rows = ((host, task_vars["hostvars"][host].get(name)) for host in task_vars["ansible_play_hosts_all"])
    return {host: row for host, row in rows if row is not None}


def spark(answer: dict) -> dict | None:
    """One Spark's probe out of its registered result; None where it did not answer or is no Spark."""
    return None if answer.get("unreachable") or answer.get("failed") else answer.get("spark")


def fault(host: str, answer: dict) -> str:
    """Why a Spark did not answer, as a sentence."""
    said = " ".join(str(answer.get("msg") or "no answer").split())
    return f"{host} does not answer: {said[:300]}" if answer.get("unreachable") else f"{host}: {said[:300]}"


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
    alive = working and all(sparks[host]["container"].get("serving_process") for host in nodes)
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


def claim(plan: dict, total: int) -> int:
    """Bytes that vLLM wants free on a node before it starts: its share of the total, or the amount it was given."""
    memory = plan["memory"]
    if memory.get("gpu_memory_gb"):
        return int(memory["gpu_memory_gb"] * GIB)
    return int((memory.get("gpu_memory_utilization") or VLLM_SHARE) * total)


def arithmetic(plan: dict, seen: dict) -> list[dict]:
    """Does the plan fit each of its nodes once the present model is gone? One row a node that answered.

    A row is {host, ok, total, free, held, needs, weights, message}, in bytes. Two bounds: what vLLM claims must be
    free (it refuses to start otherwise), and a node's part of the weights, with max(10 %, 8 GB) kept for everything
    else, must go into the claim and into the node.
    """
    rows = []
    for node in plan["nodes"]:
        found = spark(seen.get(node["host"], {}))
        if not found:
            continue
        memory = found["memory"]
        total, held = memory["total"], memory.get("model", 0)
        free = min(total, memory["available"] + held)
        on_disk = (found["weights"].get(plan["repo"]) or {}).get("bytes", 0)
        parts = max(1, plan["tensor_parallel"] * plan["pipeline_parallel"])
        weights = (on_disk or plan["memory"].get("weights_bytes") or 0) // parts
        reserve = max(total // 10, 8 * GIB)
        needs = claim(plan, total)
        row = {
            "host": node["host"],
            "total": total,
            "free": free,
            "held": held,
            "needs": needs,
            "weights": weights,
        }
        of = f"{gb(total)} on {node['host']}"
        then = " once the present model is gone" if held else ""
        if weights + reserve > total:
            part = "Its weights" if parts == 1 else f"Its part of the weights (1 of {parts})"
            text = f"{part} take {gb(weights)}, and with {gb(reserve)} kept for the rest that is more than the {of}."
        elif weights > needs:
            text = f"Its weights take {gb(weights)} and it may use only {gb(needs)} of the {of}."
        elif free < needs:
            text = f"It needs {gb(needs)} and {gb(free)} of the {of} are free{then}."
        else:
            text = f"It needs {gb(needs)}; {gb(free)} of the {of} are free{then}."
            rows.append(row | {"ok": True, "message": text})
            continue
        rows.append(row | {"ok": False, "message": text})
    return rows


def join(names: list[str]) -> str:
    """Names as in a sentence: spark1; spark1 and spark2; spark1, spark2 and spark3."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
