"""Ansible action: put every Spark's probe and the recipes into the one result of probe.yml.

An action plugin, because it reads nothing but its arguments and what every host registered.
"""

from __future__ import annotations

import time

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_menu, spark_report, spark_run


class ActionModule(ActionBase):
    """See plugins/modules/spark_report.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Collect what every host registered, and report."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "seen": {"type": "str", "required": True},
                "head": {"type": "str", "required": True},
                "recipes": {"type": "list", "elements": "dict", "default": []},
                "recipe_dirs": {"type": "list", "elements": "str", "default": []},
                "operation": {"type": "str", "choices": ["probe", "menu"], "default": "probe"},
            }
        )
        tell = menu if wish.pop("operation") == "menu" else report
        wish["seen"] = spark_report.per_host(task_vars, wish["seen"])
        addresses = spark_report.per_host(task_vars, "ansible_host")
        return {"changed": False, "result": tell(addresses=addresses, **wish)}


def report(seen: dict, addresses: dict, head: str, recipes: list[dict], recipe_dirs: list[str]) -> dict:
    """The result of probe.yml: see RETURN in plugins/modules/spark_report.py."""
    sparks = [row(host, addresses.get(host, host), answer) for host, answer in seen.items()]
    now = spark_report.serving(head, seen)
    lease = (spark_report.spark(seen.get(head, {})) or {}).get("lease")
    told = {key: value for key, value in now.items() if key != "plan"} if now else None
    silent = [f"{spark['error']}." for spark in sparks if not spark["reachable"]]
    fitting = {recipe["name"]: fits(recipe, seen) for recipe in recipes}
    state = f"{now['title']} {'serves' if now['ready'] else 'does not answer'}." if now else "No model is serving."
    return {
        "operation": "probe",
        "ok": not silent,
        "changed": False,
        "message": " ".join([state, *silent]),
        "at": time.time(),
        "head": head,
        "sparks": sparks,
        "serving": told,
        "lease": None if lease and spark_run.is_over(lease.get("run")) else lease,
        "recipes": [
            {key: value for key, value in recipe.items() if key != "placement"} | {"fits": fitting[recipe["name"]]}
            for recipe in recipes
        ],
        "models": models(recipes, seen, fitting),
        "recipe_dirs": recipe_dirs,
    }


def menu(**wish) -> dict:
    """The result of menu.yml: the models alone, and which folders were looked into."""
    told = report(**wish)
    cards = told["models"]
    groups = {
        "ready": ("ready",),
        "without a recipe": ("needs setup",),
        "not whole": ("downloading", "incomplete", "missing on some hosts", "no weights"),
        "that cannot run here": ("too big", "too few Sparks", "unusable", "broken"),
    }
    counts = {words: sum(card["status"] in group for card in cards) for words, group in groups.items()}
    said = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
    silent = [f"{spark['error']}." for spark in told["sparks"] if not spark["reachable"]]
    kept = {key: told[key] for key in ("ok", "changed", "at", "head", "models", "recipe_dirs")}
    return kept | {
        "operation": "menu",
        "message": " ".join([f"Models: {said}." if said else "There is no model and no recipe.", *silent]),
        "folders": {spark["host"]: spark["folders"] for spark in told["sparks"] if spark["reachable"]},
    }


def models(recipes: list[dict], seen: dict, fitting: dict) -> list[dict]:
    """The menu; see spark_menu."""
    disks = {host: found["weights"] for host, answer in seen.items() if (found := spark_report.spark(answer))}
    return spark_menu.menu(recipes, disks, fitting)


def row(host: str, address: str, answer: dict) -> dict:
    """One Spark for a page: its probe, or why there is none."""
    found = spark_report.spark(answer)
    if not found:
        return {
            "host": host,
            "address": address,
            "reachable": False,
            "error": spark_report.fault(host, answer),
        }
    shown = ("memory", "gpu", "disk", "docker", "session", "launcher", "container", "images", "clock")
    warning = spark_report.short_lived(found)
    told = {"host": host, "address": address, "reachable": True, "error": None, "warning": warning}
    # Which folders were looked into, and why one is empty.
    return told | {key: found[key] for key in shown} | {"folders": (found["scan"] or {}).get("folders") or []}


def fits(recipe: dict, seen: dict) -> dict | None:
    """{ok, message} of the node where it is tightest; None for a recipe that cannot be placed on this cluster."""
    place = recipe.get("placement")
    rows = spark_report.arithmetic(place, seen) if place else []
    if not rows:
        return None
    tightest = min(rows, key=lambda line: (line["ok"], line["free"] - line["needs"]))
    return {key: tightest[key] for key in ("ok", "message", "verified", "estimate")}
