"""Suggest launch flags for models that a scan found, on the controller.

An action plugin, because it only computes; see plugins/modules/recipe_suggest.py.
"""

from __future__ import annotations

import json

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_infer, spark_recipe, spark_report

ARGUMENTS = {
    "model": {"type": "str", "required": True},
    "seen": {"type": "str", "required": True},
    "head": {"type": "str", "required": True},
    "recipe_dirs": {"type": "list", "elements": "path", "default": []},
    "port": {"type": "int", "default": 8888},
    "nodes": {"type": "int"},
}


class ActionModule(ActionBase):
    """See plugins/modules/recipe_suggest.py for what it takes and returns."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read the arguments, suggest."""
        super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(argument_spec=ARGUMENTS)
        given["seen"] = spark_report.per_host(task_vars, given["seen"])
        # Ansible's own kinds of text and numbers become plain ones, which YAML can write.
        given = json.loads(json.dumps(given))
        order = [given["head"], *(host for host in task_vars["groups"].get("vllm", []) if host != given["head"])]
        return {"changed": False, "result": suggested(order=order, **given)}


def suggested(model, seen, head, order, recipe_dirs, port, nodes) -> dict:
    """The result of suggest_recipe.yml: see RETURN in plugins/modules/recipe_suggest.py."""
    result = {"operation": "suggest_recipe", "ok": False, "changed": False, "model": model, "suggestion": None}
    sparks = {host: found for host in order if (found := spark_report.spark(seen.get(host, {"unreachable": True})))}
    entries = {host: found["weights"][model] for host, found in sparks.items() if model in found["weights"]}
    whole = [host for host, entry in entries.items() if entry["state"] == "complete"]
    if not whole:
        told = next((f"{host}: {entry['reason']}." for host, entry in entries.items() if entry["reason"]), "")
        silent = [spark_report.fault(host, seen[host]) + "." for host in order if host in seen and host not in sparks]
        why = " ".join([told, *silent]).strip() or "No Spark could be asked."
        return result | {"reason": "not_whole", "message": f"{model} is whole on no Spark. {why}"}
    memory = {host: found["memory"] for host, found in sparks.items()}
    rows = [
        {"host": host, "total": row["total"], "available": row["available"], "held": row.get("model", 0)}
        for host, row in memory.items()
    ]
    taken = {item.name for item in spark_recipe.load_all(recipe_dirs)}
    suggestion = spark_infer.suggest(entries[whole[0]], rows, taken, port, nodes)
    if suggestion["recipe"] is None:
        return result | {"reason": "no_suggestion", "message": suggestion["reason"], "suggestion": suggestion}
    where = "one Spark" if suggestion["nodes"] == 1 else f"{suggestion['nodes']} Sparks"
    message = f"{suggestion['title']} would run on {where}; confidence: {suggestion['confidence']}."
    return result | {"ok": True, "reason": None, "message": message, "suggestion": suggestion}
