"""Ansible action: put every Spark's probe and the recipes into the one result of probe.yml.

An action plugin, because it reads nothing but its arguments and what every host registered.
"""

from __future__ import annotations

import time
from pathlib import Path

import ansible.module_utils
from ansible.plugins.action import ActionBase

# Ansible looks into a role's module_utils for modules only; on the controller Python has to be told.
ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "module_utils"))

from ansible.module_utils import spark_report


class ActionModule(ActionBase):
    """See library/spark_report.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Collect what every host registered, and report."""
        super().run(tmp, task_vars)
        _, wish = self.validate_argument_spec(
            {
                "seen": {"type": "str", "required": True},
                "head": {"type": "str", "required": True},
                "recipes": {"type": "list", "elements": "dict", "default": []},
                "recipe_dirs": {"type": "list", "elements": "str", "default": []},
            }
        )
        wish["seen"] = spark_report.per_host(task_vars, wish["seen"])
        addresses = spark_report.per_host(task_vars, "ansible_host")
        return {"changed": False, "result": report(addresses=addresses, **wish)}


def report(seen: dict, addresses: dict, head: str, recipes: list[dict], recipe_dirs: list[str]) -> dict:
    """The result of probe.yml: see RETURN in library/spark_report.py."""
    sparks = [row(host, addresses.get(host, host), answer) for host, answer in seen.items()]
    now = spark_report.serving(head, seen)
    told = {key: value for key, value in now.items() if key != "plan"} if now else None
    silent = [f"{spark['error']}." for spark in sparks if not spark["reachable"]]
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
        "lease": (spark_report.spark(seen.get(head, {})) or {}).get("lease"),
        "recipes": [
            {key: value for key, value in recipe.items() if key != "placement"} | {"fits": fits(recipe, seen)}
            for recipe in recipes
        ],
        "recipe_dirs": recipe_dirs,
    }


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
    shown = ("memory", "gpu", "disk", "docker", "session", "launcher", "container", "weights", "images", "clock")
    warning = spark_report.short_lived(found)
    told = {"host": host, "address": address, "reachable": True, "error": None, "warning": warning}
    return told | {key: found[key] for key in shown}


def fits(recipe: dict, seen: dict) -> dict | None:
    """{ok, message} of the node where it is tightest; None for a recipe that cannot be placed on this cluster."""
    place = recipe.get("placement")
    rows = spark_report.arithmetic(place, seen) if place else []
    if not rows:
        return None
    tightest = min(rows, key=lambda line: (line["ok"], line["free"] - line["needs"]))
    return {"ok": tightest["ok"], "message": tightest["message"]}
