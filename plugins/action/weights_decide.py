"""Ansible action: decide from what every Spark said whether a model may be deleted.

An action plugin, because it reads nothing but its arguments, what was registered, and recipes on the controller.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import yaml
from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_lease, spark_recipe_file, spark_report


class ActionModule(ActionBase):
    """See plugins/modules/weights_decide.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read what was registered, decide."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "repo": {"type": "str"},
                "path": {"type": "str"},
                "hosts": {"type": "list", "elements": "str", "required": True},
                "sparks": {"type": "list", "elements": "str", "required": True},
                "head": {"type": "str", "required": True},
                "recipes": {"type": "list", "elements": "dict", "default": []},
                "recipe_dirs": {"type": "list", "elements": "str", "default": []},
                "seen": {"type": "str", "required": True},
                "looked": {"type": "str", "required": True},
            }
        )
        seen, looked = (spark_report.per_host(task_vars, wish.pop(name)) for name in ("seen", "looked"))
        return {"changed": False, "decision": decide(Wish(**wish), seen, looked)}


@dataclass(frozen=True)
class Wish:
    """Which model is to go from where, on which cluster. `recipes` and `recipe_dirs` may say that it is in use."""

    repo: str | None
    path: str | None
    hosts: list[str]
    sparks: list[str]
    head: str
    recipes: list[dict]
    recipe_dirs: list[str]

    @property
    def title(self) -> str:
        """The model's name, as it was asked for."""
        return self.repo or self.path or ""

    def problems(self) -> list[dict]:
        """What is wrong with the question itself."""
        found = []
        if bool(self.repo) == bool(self.path):
            found.append(
                spark_report.problem(None, "repo", "Name one model: repo (org/name), or path of a local one.", "repo")
            )
        unknown = [host for host in dict.fromkeys(self.hosts) if host not in self.sparks]
        if unknown or not self.hosts:
            known = spark_report.join(self.sparks) if self.sparks else "none"
            named = spark_report.join([host[:64] for host in unknown]) if unknown else "nothing"
            text = f"hosts: {named} is no Spark here; there are {known}."
            found.append(spark_report.problem(None, "hosts", text, "hosts"))
        return found


def decide(wish: Wish, seen: dict, looked: dict) -> dict:
    """Whether and where it goes: see RETURN in plugins/modules/weights_decide.py.

    `seen` and `looked` are by host what spark_probe and weights_delete in check mode registered.
    """
    hosts = list(dict.fromkeys(wish.hosts))
    problems = wish.problems() or refusals(wish, hosts, seen, looked)
    there = [host for host in hosts if (looked.get(host) or {}).get("removed")]
    others = [host for host in wish.sparks if host not in hosts]
    # Sparks that keep it, cannot let it go, or may have it: they were not asked.
    elsewhere = [host for host in others if any((looked.get(host) or {}).get(key) for key in ("removed", "problem"))]
    elsewhere += [host for host in others if "removed" not in (looked.get(host) or {}) and host not in elsewhere]
    inferred = card(wish.recipe_dirs[0], wish.title) if wish.recipe_dirs and not problems else None
    return {
        "title": wish.title[:200],
        "repo": wish.repo if not problems or problems[0]["field"] != "repo" else None,
        "problems": problems,
        "hosts": [] if problems else there,
        "asked": [host for host in hosts if host in wish.sparks],
        "bytes": {host: looked[host].get("bytes", 0) for host in there},
        "elsewhere": elsewhere,
        "card": inferred if not elsewhere else None,
        "card_kept": bool(inferred and elsewhere),
    }


def refusals(wish: Wish, hosts: list[str], seen: dict, looked: dict) -> list[dict]:
    """Why a model may not go: somebody uses it, or a Spark's disk may not be changed."""
    user = user_of(wish.title, wish.head, wish.recipes, seen)
    found = [spark_report.problem(wish.head, "serving", user)] if user else []
    for host in hosts:
        found += refusal(host, looked.get(host) or silent(seen.get(host)))
    # A name that is bad is bad everywhere: said once.
    named = next((row for row in found if row["field"]), None)
    return [named] if named else found


def silent(answer: dict | None) -> dict:
    """Why a Spark's disk was not looked at: its first look failed, or it was not asked."""
    failed = answer and (answer.get("failed") or answer.get("unreachable"))
    return answer if failed else spark_report.LEFT_OUT


def refusal(host: str, answer: dict) -> list[dict]:
    """A problem if this Spark's disk may not be changed."""
    if answer.get("unreachable") or answer.get("failed"):
        return [
            spark_report.problem(
                host, "unreachable", f"{spark_report.fault(host, answer)}; nothing was deleted anywhere."
            )
        ]
    if not answer.get("problem"):
        return []
    field = answer["reason"] if answer["reason"] in ("repo", "path") else None
    text = f"{field}: {answer['problem']}" if field else f"{host}: {answer['problem']}"
    return [spark_report.problem(None if field else host, answer["reason"], text, field)]


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
