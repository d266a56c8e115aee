"""Ansible action: put what came of a download, or of its cancel, into words.

An action plugin, because it reads nothing but its arguments and what was registered.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report

_SEEN = ("started", "watched", "copy_stopped")


class ActionModule(ActionBase):
    """See plugins/modules/weights_download_outcome.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read what was registered, and tell."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "repo": {"type": "str", "required": True},
                "revision": {"type": "str", "default": "main"},
                "host": {"type": "str", "required": True},
                **{name: {"type": "str", "required": name == "started"} for name in _SEEN},
                "copied": {"type": "dict", "default": {}},
                "operation": {"type": "str", "default": "download_weights"},
            }
        )
        seen = {name: spark_report.per_host(task_vars, wish[name]) if wish[name] else {} for name in _SEEN}
        return {"changed": False, "result": told(wish, seen, bool(task_vars.get("ansible_check_mode")))}


def told(wish: dict, seen: dict, preview: bool) -> dict:
    """The result of download_weights and tidy_download_weights; the role's README describes it."""
    result = of_download(wish, seen["started"], seen["watched"], preview)
    stops = [line for answer in seen["copy_stopped"].values() for line in answer.get("stopped") or []]
    if stops:
        result["changed"] = True
        result["message"] += " " + " ".join(f"{line[0].upper()}{line[1:]}; what came stays." for line in stops)
    copied = wish["copied"]
    if not copied or not result["ok"]:
        return result
    result |= {"ok": copied["ok"], "changed": result["changed"] or copied["changed"], "copy": copied}
    result |= {"reason": copied["reason"], "problems": copied["problems"], "log_tail": copied["log_tail"]}
    if not copied["ok"]:
        result["outcome"] = "failed"
    elif result["outcome"] == "unchanged":
        result["outcome"] = copied["outcome"]
    return result | {"message": f"{result['message']} {copied['message']}"}


def of_download(wish: dict, started: dict, watched: dict, preview: bool) -> dict:
    """The part of it that is the download's."""
    host, operation = wish["host"], wish["operation"]
    first, last = started.get(host) or {}, watched.get(host) or {}
    last = first if last.get("skipped") or not last else last
    result = {"operation": operation, "ok": False, "changed": bool(first.get("changed")), "repo": wish["repo"]}
    result |= {"revision": wish["revision"], "host": host, "outcome": "failed", "reason": None}
    result |= {"weights": last.get("weights"), "progress": last.get("progress"), "problems": []}
    result["log_tail"] = last.get("log_tail") or []
    if host not in started:
        problem = {"code": "no_host", "message": f"There is no Spark {host} that serves models."}
    elif last.get("unreachable") or last.get("failed"):
        code = "unreachable" if last.get("unreachable") else "failed"
        problem = {"code": code, "message": f"{spark_report.fault(host, last)}."}
    else:
        problem = last.get("problem")
    if problem:
        result["outcome"] = "failed" if first.get("changed") else "refused"
        result |= {"reason": problem["code"], "message": problem["message"]}
        result["problems"] = [{"host": host, **problem}]
        if last.get("unreachable") and first.get("changed"):
            result["message"] += " The download goes on there; run it again to see how far it is."
        return result
    words = last.get("message") or ""
    if operation.startswith("tidy_"):
        return result | {"ok": True, "outcome": "stopped", "message": f"Cancelled on {host}: {words}."}
    outcome = "preview" if preview and first.get("changed") else "downloaded" if first.get("changed") else "unchanged"
    if first.get("attached"):
        outcome, result["changed"] = "downloaded", True
    return result | {"ok": True, "outcome": outcome, "message": f"{host}: {words}."}
