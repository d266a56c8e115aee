"""Ansible action: see, from how each copy ended, at which Sparks a model arrived, and what it has to be there.

An action plugin, because it reads nothing but its arguments and what was registered.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report


class ActionModule(ActionBase):
    """See plugins/modules/weights_copy_arrived.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read what was registered, and compare."""
        super().run(tmp, task_vars)
        name = {"type": "str", "required": True}
        _unused, wish = self.validate_argument_spec(
            {"plan": {"type": "dict", "required": True}, "started": name, "watched": name, "hashed": name}
        )
        seen = {key: spark_report.per_host(task_vars, wish[key]) for key in ("started", "watched", "hashed")}
        preview = bool(task_vars.get("ansible_check_mode"))
        return {"changed": False, **arrived(wish["plan"], preview=preview, **seen)}


def arrived(plan: dict, started: dict, watched: dict, hashed: dict, preview: bool) -> dict:
    """{hosts, manifest, problems}: see RETURN in plugins/modules/weights_copy_arrived.py."""
    if not plan:
        return {"hosts": [], "manifest": {}, "problems": {}}
    found = {} if preview else {host: went_wrong(host, plan, started, watched) for host in plan["rows"]}
    problems = {host: problem for host, problem in found.items() if problem}
    hashes = (hashed.get(plan["source"]) or {}).get("hashes") or {}
    rows = [row | {"sha256": row["sha256"] or hashes.get(row["path"])} for row in plan["manifest"]["files"]]
    return {
        "hosts": [host for host in plan["targets"] if host not in problems],
        "manifest": plan["manifest"] | {"files": rows},
        "problems": problems,
    }


def went_wrong(host: str, plan: dict, started: dict, watched: dict) -> dict | None:
    """Why the copy to a Spark did not arrive, or None."""
    copy = next((copy for copy in plan["copies"] if copy["to"] == host), None)
    if copy is None:
        return None
    runner = copy["runner"]
    first, last = started.get(runner) or {}, watched.get(runner) or {}
    last = first if not last or last.get("skipped") else last
    if last.get("unreachable") or last.get("failed"):
        code = "unreachable" if last.get("unreachable") else "failed"
        more = " The copy goes on there; run it again to see how far it is." if first.get("copies") else ""
        return {"code": code, "message": f"{spark_report.fault(runner, last)}.{more}"}
    problem = last.get("problem") or ((last.get("copies") or {}).get(host) or {}).get("problem")
    if not problem:
        return None
    if "words" not in problem:
        return problem
    far = copy["to"] if copy["direction"] == "push" else plan["source"]
    words = problem["words"].format(near=runner, far=far)
    message = f"The copy of {plan['name']} to {host} failed: {words}; what came stays, and the next copy goes on there."
    return {"code": problem["code"], "message": message}
