"""Ansible action: put what came of a model's deletion into words.

An action plugin, because it reads nothing but its arguments and what was registered.
"""

from __future__ import annotations

import os

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report


class ActionModule(ActionBase):
    """See plugins/modules/weights_delete_outcome.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read what was registered, and tell."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "decision": {"type": "dict", "required": True},
                "deleted": {"type": "str", "required": True},
                "card_removed": {"type": "bool", "default": False},
            }
        )
        deleted = spark_report.per_host(task_vars, wish["deleted"])
        preview = bool(task_vars.get("ansible_check_mode"))
        return {"changed": False, "result": told(wish["decision"], deleted, wish["card_removed"], preview)}


def told(decision: dict, deleted: dict, card_removed: bool, preview: bool) -> dict:
    """The result of delete_weights; the role's README describes it."""
    title, problems = decision.get("title", ""), list(decision.get("problems") or [])
    if not decision:
        problems = [spark_report.problem(None, "look", "The Sparks could not be looked at, so nothing was deleted.")]
    rows = []
    for host in decision.get("asked") or []:
        answer = deleted.get(host) or {}
        said = next((row["message"] for row in problems if row["host"] == host), None)
        if host in decision["hosts"]:
            if answer.get("unreachable") or answer.get("failed"):
                said = f"{spark_report.fault(host, answer)}."
            else:
                said = answer.get("problem") and f"{host}: {answer['problem']}"
            if said:
                problems.append(spark_report.problem(host, answer.get("reason") or "unreachable", said))
        rows.append(
            {
                "host": host,
                "freed": answer.get("freed", 0),
                "bytes": answer.get("bytes", 0),
                "problem": said,
                "changed": bool(answer.get("changed")),
            }
        )
    changed = any(row["changed"] for row in rows) or card_removed
    refused = not decision or bool(decision["problems"])
    outcome = "refused" if refused else "failed" if problems else "unchanged" if not changed else "deleted"
    freed = sum(row["freed"] for row in rows)
    took = sum(row["bytes"] for row in rows if row["changed"])
    gone = [row["host"] for row in rows if row["changed"] and not row["problem"]]
    sentences = list(dict.fromkeys(row["message"] for row in problems))
    if gone and preview:
        sentences.append(f"{title} would be deleted from {spark_report.join(gone)}; {size(took)} would come back.")
    elif gone:
        sentences.append(f"{title} is deleted from {spark_report.join(gone)}; {size(freed)} came back.")
    elif not problems:
        sentences.append(f"{title} is not on {spark_report.join([row['host'] for row in rows])}.")
    if card_removed:
        sentences.append(f"Its inferred recipe {'would go' if preview else 'is gone'} too.")
    elif decision.get("card_kept") and not problems:
        sentences.append(f"Its inferred recipe stays, for {spark_report.join(decision['elsewhere'])}.")
    return {
        "operation": "delete_weights",
        "ok": not problems,
        "changed": changed and not preview,
        "outcome": "preview" if preview and outcome == "deleted" else outcome,
        "reason": problems[0]["code"] if problems else None,
        "field": problems[0]["field"] if problems else None,
        "message": " ".join(sentences),
        "repo": decision.get("repo"),
        "title": title,
        "hosts": rows,
        "freed": freed,
        "bytes": took,
        "recipe_removed": os.path.basename(decision["card"]).rsplit(".", 1)[0] if card_removed else None,
        "problems": problems,
    }


def size(amount: int) -> str:
    """Bytes in a person's words, also where they are few."""
    return spark_report.gb(amount) if amount >= 100 << 20 else f"{amount / 2**20:.1f} MB"
