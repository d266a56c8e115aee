"""Ansible action: put what came of a copy, or of its cancel, into words.

An action plugin, because it reads nothing but its arguments and what was registered.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import amount

_SEEN = ("watched", "settled", "stopped")


class ActionModule(ActionBase):
    """See plugins/modules/weights_copy_outcome.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read what was registered, and tell."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "name": {"type": "str", "required": True},
                "verify": {"type": "str", "choices": ["size", "hash"], "default": "size"},
                "planned": {"type": "dict", "default": {}},
                "arrived": {"type": "dict", "default": {}},
                **{name: {"type": "str"} for name in _SEEN},
                "operation": {"type": "str", "default": "copy_weights"},
            }
        )
        seen = {name: spark_report.per_host(task_vars, wish[name]) if wish[name] else {} for name in _SEEN}
        result = Outcome(wish, seen, preview=bool(task_vars.get("ansible_check_mode"))).result()
        return {"changed": False, "result": result}


class Outcome:
    """One run's registered results as one result; the role's README describes it."""

    def __init__(self, wish: dict, seen: dict, preview: bool):
        self.wish, self.seen, self.preview = wish, seen, preview
        self.name, self.plan = wish["name"], wish["planned"].get("plan") or {}
        self.problems = wish["arrived"].get("problems") or {}

    def result(self) -> dict:
        """The whole of it."""
        base = {
            "operation": self.wish["operation"],
            "ok": False,
            "changed": False,
            "outcome": "refused",
            "reason": None,
        }
        base |= {"name": self.name, "source": self.plan.get("source"), "bytes": 0, "sparks": [], "problems": []}
        base |= {"verified": self.wish["verify"], "log_tail": []}
        if self.wish["stopped"]:
            return base | stopped(self.seen["stopped"])
        if not self.plan:
            problem = self.wish["planned"].get("problem") or {"code": "failed", "message": "No Spark could be asked."}
            return base | {"reason": problem["code"], "message": problem["message"], "problems": [problem]}
        rows = [self.row(host) for host in self.plan["rows"]]
        base |= {
            "sparks": rows,
            "bytes": self.plan["manifest"]["bytes"],
            "changed": any(row["changed"] for row in rows),
        }
        bad = [row for row in rows if not row["ok"]]
        done = [row["host"] for row in rows if row["ok"] and row["changed"]]
        same = [row["host"] for row in rows if row["ok"] and not row["changed"]]
        size = f"{amount(base['bytes'])} in {len(self.plan['manifest']['files'])} files"
        words = [row["message"] for row in bad]
        if done and self.preview:
            words.append(
                f"{self.name} would be copied from {self.plan['source']} to {spark_report.join(done)}: {size}."
            )
        elif done:
            words.append(
                f"{self.name} is copied from {self.plan['source']} to {spark_report.join(done)}: {size}, "
                f"verified by {base['verified']}."
            )
        if same:
            checked = ", verified by hash" if base["verified"] == "hash" and not self.preview else ""
            words.append(f"{self.name} is whole on {spark_report.join(same)} already{checked}.")
        base["outcome"] = "failed" if bad else "preview" if self.preview and done else "copied" if done else "unchanged"
        base["problems"] = [{"host": row["host"], "code": row["reason"], "message": row["message"]} for row in bad]
        base["log_tail"] = [line for row in bad for line in self.log_of(row["host"])]
        return base | {"ok": not bad, "reason": bad[0]["reason"] if bad else None, "message": " ".join(words)}

    def row(self, host: str) -> dict:
        """What came of one target: {host, ok, changed, bytes, reason, message}."""
        plan = self.plan["rows"][host]
        settled = self.seen["settled"].get(host) or {}
        row = {"host": host, "ok": True, "changed": not plan["unchanged"], "bytes": plan["bytes"], "reason": None}
        problem = plan["problem"] or self.problems.get(host)
        if not problem and (settled.get("unreachable") or settled.get("failed")):
            problem = {"code": "unreachable", "message": f"{spark_report.fault(host, settled)}."}
        if not problem and settled.get("problem"):
            problem = {"code": settled["problem"]["code"], "message": f"{host}: {settled['problem']['message']}"}
        if problem:
            began = any(copy["to"] == host for copy in self.plan["copies"]) and not self.preview
            return row | {"ok": False, "changed": began, "reason": problem["code"], "message": problem["message"]}
        return row | {"message": "whole already" if plan["unchanged"] else "copied"}

    def log_of(self, host: str) -> list[str]:
        """The last lines of rsync's log about one target."""
        for answer in self.seen["watched"].values():
            lines = ((answer.get("copies") or {}).get(host) or {}).get("log_tail")
            if lines:
                return lines
        return []


def stopped(answers: dict) -> dict:
    """After a cancel, what was stopped: a part of the result."""
    words = [line for answer in answers.values() for line in answer.get("stopped") or []]
    silent = [f"{spark_report.fault(host, answer)}." for host, answer in answers.items() if answer.get("unreachable")]
    kept = f"Cancelled: {spark_report.join(words)}; what came stays, and the next copy goes on there."
    message = " ".join([kept if words else "Cancelled: no copy was running.", *silent])
    return {"ok": not silent, "changed": bool(words), "outcome": "stopped", "message": message}
