"""Suggest launch flags for models that a scan found, on the controller.

An action plugin, because it only computes; see library/recipe_suggest.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import ansible.module_utils
from ansible.plugins.action import ActionBase

# Ansible looks into a role's module_utils for modules only; on the controller Python has to be told.
for _role in ("recipe", "spark"):
    _folder = str(Path(os.path.realpath(__file__)).parents[2] / _role / "module_utils")
    if _folder not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(_folder)

from ansible.module_utils import spark_infer, spark_recipe

ARGUMENTS = {
    "entries": {"type": "list", "elements": "dict", "required": True},
    "sparks": {"type": "list", "elements": "dict", "default": []},
    "recipe_dirs": {"type": "list", "elements": "path", "default": []},
    "port": {"type": "int", "default": 8888},
    "nodes": {"type": "int"},
}


class ActionModule(ActionBase):
    """See library/recipe_suggest.py for what it takes and returns."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """One suggestion an entry, each with a name of its own."""
        super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(argument_spec=ARGUMENTS)
        suggestions = suggest_all(
            given["entries"], given["sparks"], given["recipe_dirs"], given["port"], given["nodes"]
        )
        return {"changed": False, "suggestions": suggestions}


def suggest_all(entries, sparks, dirs, port=8888, nodes=None) -> list[dict]:
    """The suggestions in the entries' order; no two have one name, and none has that of a recipe."""
    taken = {item.name for item in spark_recipe.load_all(dirs)}
    suggestions = []
    for entry in entries:
        suggestions.append(spark_infer.suggest(entry, sparks, taken, port, nodes))
        taken.add(suggestions[-1]["name"])
    return suggestions
