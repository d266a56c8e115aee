"""Ansible action: hand the module the Hub's token over its standard input, and put what came of it into words.

`state: told` runs on the controller alone: it reads what the tasks before it registered.
"""

from __future__ import annotations

import os
import re
import stat

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report

_SEEN = ("started", "watched", "copy_told", "copy_stopped")


class ActionModule(ActionBase):
    """See plugins/modules/weights_download.py."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Run the module, with the token where a file of one is named and it is needed."""
        super().run(tmp, task_vars)
        arguments = {key: value for key, value in self._task.args.items() if key != "token"}
        if arguments.get("state") == "told":
            seen = {name: spark_report.per_host(task_vars, f"__weights_{name}") for name in _SEEN}
            return {"changed": False, "result": told(arguments, seen, bool(task_vars.get("ansible_check_mode")))}
        path = arguments.get("token_file")
        if path and arguments.get("state", "started") == "started":
            try:
                arguments["token"] = read_token(str(path))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                message = f"The token file {path} on this machine cannot be used: {reason}."
                problem = {"code": "token_file", "message": message}
                return {"changed": False, "done": False, "problem": problem, "message": message}
        return self._execute_module(module_args=arguments, task_vars=task_vars)


def read_token(path: str) -> str:
    """The one line in the file. Raises ValueError for a file that others can read, or that holds something else."""
    with open(os.path.expanduser(path), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        if found.st_mode & 0o077:
            raise ValueError(f"others can read it (its mode is {found.st_mode & 0o777:04o}); chmod 600 it")
        token = file.read(4096).decode("ascii", "replace").strip()
    # The Hub's tokens are hf_…; what else this machine keeps secret, a private key say, is not sent anywhere.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{6,2048}", token):
        raise ValueError("it does not hold a token, alone and on one line")
    return token


def told(wish: dict, seen: dict, preview: bool) -> dict:
    """The result of download_weights and tidy_download_weights; the role's README describes it."""
    result = of_download(wish, seen["started"], seen["watched"], preview)
    stops = [line for answer in seen["copy_stopped"].values() for line in answer.get("stopped") or []]
    if stops:
        result["changed"] = True
        result["message"] += " " + " ".join(f"{line[0].upper()}{line[1:]}; what came stays." for line in stops)
    copied = (next(iter(seen["copy_told"].values()), None) or {}).get("result")
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
    host, operation = wish["host"], wish.get("operation", "download_weights")
    first, last = started.get(host) or {}, watched.get(host) or {}
    last = first if last.get("skipped") or not last else last
    result = {"operation": operation, "ok": False, "changed": bool(first.get("changed")), "repo": wish["repo"]}
    result |= {"revision": wish.get("revision", "main"), "host": host, "outcome": "failed", "reason": None}
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
