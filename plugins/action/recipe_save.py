"""Write a confirmed recipe to its file on the controller, never over one that a person wrote.

An action plugin and not a module, because the recipes are files of the controller.
"""

from __future__ import annotations

import os
import time

from ansible import context
from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_inventory, spark_recipe_file

ARGUMENTS = {
    "model": {"type": "str", "required": True},
    "recipe": {"type": "dict", "required": True},
    "recipe_dirs": {"type": "list", "elements": "path", "required": True},
    "beside_inventory": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    """See plugins/modules/recipe_save.py for what it takes and returns."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Validate, compare, and write unless it is a preview."""
        done = super().run(tmp, task_vars)
        _validation, given = self.validate_argument_spec(argument_spec=ARGUMENTS)
        dirs = given["recipe_dirs"]
        if given["beside_inventory"]:
            try:
                folder = spark_inventory.folder(context.CLIARGS.get("inventory") or (), self._loader.load_from_file)
            except spark_inventory.NoPlace as why:
                why = spark_recipe_file.refuse("not_writable", "recipe_dirs", str(why))
                return done | refused(given["model"], why)
            dirs = list(dict.fromkeys([os.path.join(folder, "recipes"), *dirs]))
        return done | save(given["model"], given["recipe"], dirs, self._play_context.check_mode)


def save(name: str, recipe: dict, dirs: list[str], preview: bool = False) -> dict:
    """What the task returns: {changed, result, diff}; a refusal is a result that is not ok, and no failure here."""
    try:
        text = spark_recipe_file.compose(name, recipe)
        path = spark_recipe_file.place(name, dirs)
        state, before = spark_recipe_file.whose(path)
        whole = spark_recipe_file.mark(text, str(recipe["model"]), time.strftime("%Y-%m-%d"))
        changed = state == "absent" or before != text
        old = "" if state == "absent" else _read(path)
        if changed and not preview:
            spark_recipe_file.save(path, whole, fresh=state == "absent")
    except spark_recipe_file.Refused as why:
        return refused(name, why)
    verb = ("would be " if preview else "is ") + ("saved" if state == "absent" else "written anew")
    message = f"{name} {verb} as {path}." if changed else f"{name} is there already, as {path}."
    outcome = ("preview" if preview else "saved") if changed else "unchanged"
    said = blank(name) | {
        "ok": True,
        "changed": changed,
        "outcome": outcome,
        "path": path,
        "text": text,
        "message": message,
    }
    result = {"changed": changed, "result": said}
    if changed:
        result["diff"] = {"before": old, "after": whole, "before_header": path, "after_header": path}
    return result


def refused(name: str, why: spark_recipe_file.Refused) -> dict:
    """What the task returns for a recipe that is not saved."""
    said = {"reason": why.reason, "problems": why.problems, "message": f"The recipe was not saved: {why}"}
    return {"changed": False, "result": blank(name) | said}


def blank(name: str) -> dict:
    """A `result` before anything was saved."""
    said = {"operation": "save_recipe", "ok": False, "changed": False, "model": str(name)[:200], "path": None}
    return said | {"outcome": "refused", "reason": None, "problems": [], "text": None}


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
