"""Ansible action: decide from what every Spark said whether a model may be deleted, and put what came of it into words.

An action plugin, because it reads nothing but its arguments, what was registered, and recipes on the controller.
"""

from __future__ import annotations

import os
import re

import yaml
from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_lease, spark_recipe_file, spark_report


class ActionModule(ActionBase):
    """See plugins/modules/weights_decide.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Decide, or tell."""
        super().run(tmp, task_vars)
        _, wish = self.validate_argument_spec(
            {
                "repo": {"type": "str"},
                "path": {"type": "str"},
                "hosts": {"type": "list", "elements": "str", "required": True},
                "sparks": {"type": "list", "elements": "str", "required": True},
                "head": {"type": "str", "required": True},
                "recipes": {"type": "list", "elements": "dict", "default": []},
                "recipe_dirs": {"type": "list", "elements": "str", "default": []},
                "decision": {"type": "dict"},
                "card_removed": {"type": "bool", "default": False},
            }
        )
        decision, removed = wish.pop("decision"), wish.pop("card_removed")
        if decision is None:
            wish["seen"] = spark_report.per_host(task_vars, "spark_seen")
            wish["looked"] = spark_report.per_host(task_vars, "__weights_looked")
            return {"changed": False, "decision": decide(**wish)}
        deleted = spark_report.per_host(task_vars, "__weights_deleted")
        preview = bool(task_vars.get("ansible_check_mode"))
        return {"changed": False, "result": told(decision, deleted, removed, preview)}


def decide(
    repo: str | None,
    path: str | None,
    hosts: list[str],
    sparks: list[str],
    head: str,
    recipes: list[dict],
    recipe_dirs: list[str],
    seen: dict,
    looked: dict,
) -> dict:
    """Whether and where it goes: see RETURN in plugins/modules/weights_decide.py."""
    title, hosts = repo or path or "", list(dict.fromkeys(hosts))
    problems = []
    if bool(repo) == bool(path):
        problems.append(problem(None, "repo", "Name one model: repo (org/name), or path of a local one.", "repo"))
    unknown = [host for host in hosts if host not in sparks]
    if unknown or not hosts:
        known = spark_report.join(sparks) if sparks else "none"
        named = spark_report.join([host[:64] for host in unknown]) if unknown else "nothing"
        text = f"hosts: {named} is no Spark here; there are {known}."
        problems.append(problem(None, "hosts", text, "hosts"))
    if not problems:
        user = user_of(title, head, recipes, seen)
        if user:
            problems.append(problem(head, "serving", user))
        for host in hosts:
            problems += refusal(host, looked.get(host) or silent(seen.get(host)))
        # A name that is bad is bad everywhere: said once.
        if any(row["field"] for row in problems):
            problems = [next(row for row in problems if row["field"])]
    there = [host for host in hosts if (looked.get(host) or {}).get("removed")]
    elsewhere = [
        host
        for host in sparks
        if host not in hosts and ((looked.get(host) or {}).get("removed") or (looked.get(host) or {}).get("problem"))
    ]
    unsure = [host for host in sparks if host not in hosts and "removed" not in (looked.get(host) or {})]
    inferred = card(recipe_dirs[0], title) if recipe_dirs and not problems else None
    return {
        "title": title[:200],
        "repo": repo if not problems or problems[0]["field"] != "repo" else None,
        "problems": problems,
        "hosts": [] if problems else there,
        "asked": [host for host in hosts if host in sparks],
        "bytes": {host: looked[host].get("bytes", 0) for host in there},
        "elsewhere": elsewhere + [host for host in unsure if host not in elsewhere],
        "card": inferred if not elsewhere and not unsure else None,
        "card_kept": bool(inferred and (elsewhere or unsure)),
    }


def silent(answer: dict | None) -> dict:
    """Why a Spark's disk was not looked at: its first look failed, or it was not asked."""
    failed = answer and (answer.get("failed") or answer.get("unreachable"))
    return answer if failed else {"unreachable": True, "msg": "it was left out of this run"}


def refusal(host: str, answer: dict) -> list[dict]:
    """A problem if this Spark's disk may not be changed."""
    if answer.get("unreachable") or answer.get("failed"):
        return [problem(host, "unreachable", f"{spark_report.fault(host, answer)}; nothing was deleted anywhere.")]
    if not answer.get("problem"):
        return []
    field = answer["reason"] if answer["reason"] in ("repo", "path") else None
    text = f"{field}: {answer['problem']}" if field else f"{host}: {answer['problem']}"
    return [problem(None if field else host, answer["reason"], text, field)]


def user_of(title: str, head: str, recipes: list[dict], seen: dict) -> str | None:
    """Why the model may not go because it is in use, as a sentence: it serves, is loading, or is being swapped to."""
    first = spark_report.spark(seen.get(head) or {"unreachable": True}) or {}
    now = spark_report.serving(head, seen)
    if now and now["plan"]:
        if mentions(now["plan"], title):
            return f"{title} is what {spark_report.join(now['nodes'])} serves; stop it or swap to another model first."
    elif now:
        names = set()
        for answer in seen.values():
            names |= set(((spark_report.spark(answer) or {}).get("vllm") or {}).get("models") or [])
        # A model that somebody else started says what it is only by its name, which may be any.
        if title in names or not any("/" in name for name in names):
            told = f"{now['title']} runs on {spark_report.join(now['nodes'])} and was not started from here"
            return f"{told}; it may be {title}, so stop it first."
    lease = first.get("lease")
    if not lease:
        return None
    purpose = str(lease.get("purpose") or "")
    names = {str(row.get(key)) for row in recipes for key in ("title", "name") if row.get("repo") == title}
    wanted = purpose.removeprefix("swap to ")
    before = (first.get("record") or {}).get("plan")
    swapping = wanted != purpose and (wanted in names | {title} or (before and mentions(before, title)))
    return f"{title} is part of a swap: {spark_lease.describe(lease)}" if swapping else None


def mentions(value: object, title: str, depth: int = 0) -> bool:
    """Whether a plan names the model anywhere: as its repo, a draft model, a mount."""
    if isinstance(value, str):
        return re.search(rf"(?<![\w.-]){re.escape(title)}(?![\w-]|\.\w)", value) is not None
    if depth > 8:
        return False
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(mentions(part, title, depth + 1) for part in parts)


def card(folder: str, title: str) -> str | None:
    """The recipe that was inferred for the model, in the folder of this machine's own recipes."""
    folder = os.path.expanduser(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith((".yaml", ".yml")))
    except OSError:
        return None
    for name in names:
        path = os.path.join(folder, name)
        state, text = spark_recipe_file.whose(path)
        if state != "inferred":
            continue
        try:
            recipe = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        if isinstance(recipe, dict) and recipe.get("model") == title:
            return path
    return None


def told(decision: dict, deleted: dict, card_removed: bool, preview: bool) -> dict:
    """The result of delete_weights; the role's README describes it."""
    title, problems = decision.get("title", ""), list(decision.get("problems") or [])
    if not decision:
        problems = [problem(None, "look", "The Sparks could not be looked at, so nothing was deleted.")]
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
                problems.append(problem(host, answer.get("reason") or "unreachable", said))
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


def problem(host: str | None, code: str, message: str, field: str | None = None) -> dict:
    """One reason not to go ahead; `field` is the option that is wrong."""
    return {"host": host, "code": code, "message": message, "field": field}
